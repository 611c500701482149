"""The promises of the library, one class each.

Each is shown once, on a problem large enough to mean something; the files of the parts test the
same properties over drawn problems.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import topk_np
from tests import calls
from tests.backends import Backend
from tests.oracles import (
    assert_all_close,
    assert_close,
    assert_rounded_once,
    assert_same_bits,
    select_by_sorting,
)
from tests.strategies import AttentionProblem, FFNProblem


def attention(*, whole: bool = False, k: int = 6) -> AttentionProblem:
    """Causal attention of two heads on shared keys: 12 queries after 4 cached positions."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-2, 3, shape).astype(float) if whole else rng.standard_normal(shape)

    return AttentionProblem(
        draw(2, 12, 8),
        draw(1, 16, 8),
        draw(1, 16, 5),
        draw(2, 12, 5),
        k=k,
        mask=rng.random((12, 16)) < 0.9,
        is_causal=True,
        query_offset=4,
        chunk_size=5,
    )


def ffn() -> FFNProblem:
    """A gated layer with both biases, units ranked by what they contribute."""
    normal = np.random.default_rng(1).standard_normal
    return FFNProblem(
        normal((2, 6, 8)),
        normal((20, 8)),
        normal((20, 5)),
        normal((2, 6, 5)),
        k=7,
        activation="silu",
        key_bias=normal(20),
        value_bias=normal(5),
        gate=normal((20, 8)),
        select="activation",
        chunk_size=5,
    )


class TestPromise1Exact:
    def test_k_of_all_keys_gives_the_dense_result_and_gradients(self, xp: Backend) -> None:
        for problem in (attention(k=16), attention(k=10**6)):
            topk, dense = calls.topk_attention(problem, xp), calls.dense_attention(problem, xp)
            assert_close(topk.out, dense.out, size=problem.size)
            assert_all_close(topk.grads, dense.grads, size=problem.size)
        layer = replace(ffn(), k=20)
        topk, dense = calls.topk_ffn(layer, xp), calls.dense_ffn(layer, xp)
        assert_close(topk.out, dense.out, size=layer.size)
        assert_all_close(topk.grads, dense.grads, size=layer.size)

    def test_smaller_k_gives_dense_attention_restricted_to_the_selected_keys(
        self, xp: Backend
    ) -> None:
        problem = attention()
        topk = calls.topk_attention(problem, xp)
        indices = xp.to_numpy(topk.residuals.indices)
        dense = calls.dense_attention(calls.restricted(problem, indices), xp)
        assert_close(topk.out, dense.out, size=problem.size)
        assert_all_close(topk.grads, dense.grads, size=problem.size)


class TestPromise2LowestIndexFirst:
    def test_exactly_k_with_ties_to_the_lower_index_for_every_chunk_size_and_engine(
        self, xp: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = attention(whole=True)
        scores = problem.ranks
        for engine in ("", "portable"):
            monkeypatch.setenv("TOPK_NP_KERNELS", engine)
            for chunk_size in (1, 5, 12):
                run = calls.topk_attention(problem, xp, chunk_size=chunk_size)
                indices = xp.to_numpy(run.residuals.indices)
                for place in np.ndindex(scores.shape[:-1]):
                    chosen = select_by_sorting(scores[place].tolist(), problem.k)
                    assert indices[place][indices[place] >= 0].tolist() == chosen


class TestPromise3Masks:
    def test_a_masked_key_contributes_nothing_even_if_it_is_nan(self, xp: Backend) -> None:
        problem = attention()
        mask = np.asarray(problem.mask).copy()
        mask[:, 3] = False
        problem = replace(problem, mask=mask)
        key, value = problem.key.copy(), problem.value.copy()
        key[..., 3, :], value[..., 3, :] = np.nan, np.inf
        for call in (calls.topk_attention, calls.dense_attention):
            run, clean = call(replace(problem, key=key, value=value), xp), call(problem, xp)
            assert_close(run.out, clean.out, size=problem.size)
            assert_all_close(run.grads, clean.grads, size=problem.size)

    def test_a_query_that_may_attend_to_nothing_gives_zero(self, xp: Backend) -> None:
        problem = attention()
        mask = np.asarray(problem.mask).copy()
        mask[5] = False
        for call in (calls.topk_attention, calls.dense_attention):
            run = call(replace(problem, mask=mask), xp)
            assert (run.out[..., 5, :] == 0).all()
            assert (np.asarray(run.grads[0])[..., 5, :] == 0).all()


class TestPromise4CausalByPosition:
    def test_decoding_one_query_at_a_time_gives_the_rows_of_the_full_pass(
        self, xp: Backend
    ) -> None:
        problem = replace(attention(), mask=None)
        full = calls.topk_attention(problem, xp)
        for row in range(12):
            seen = slice(0, 4 + row + 1)
            step = replace(
                problem,
                query=problem.query[..., row : row + 1, :],
                key=problem.key[..., seen, :],
                value=problem.value[..., seen, :],
                dout=problem.dout[..., row : row + 1, :],
                query_offset=4 + row,
            )
            run = calls.topk_attention(step, xp)
            assert_close(run.out, full.out[..., row : row + 1, :], size=problem.size)

    def test_the_offset_is_required_where_lengths_differ(self, xp: Backend) -> None:
        inputs, _, _ = attention().on(xp)
        with pytest.raises(ValueError, match="query_offset"):
            topk_np.topk_attention(*inputs, k=2, is_causal=True)


class TestPromise5NotFinite:
    def test_nan_or_inf_in_an_allowed_score_makes_the_row_nan(self, xp: Backend) -> None:
        problem = attention()
        for poison in (np.nan, np.inf):
            query, key = problem.query.copy(), np.abs(problem.key)
            query[..., 4, :] = poison
            for call in (calls.topk_attention, calls.dense_attention):
                out = call(replace(problem, query=query, key=key), xp).out
                assert np.isnan(out[..., 4, :]).all()
                assert np.isfinite(np.delete(out, 4, axis=-2)).all()

    def test_top_k_itself_is_a_plain_selection(self, xp: Backend) -> None:
        x = np.asarray([-np.inf, 1.0, np.nan, -np.inf])
        values, indices = topk_np.top_k(xp.asarray(x), 3)
        np.testing.assert_array_equal(xp.to_numpy(values), [np.nan, 1.0, -np.inf])
        assert xp.to_numpy(indices).tolist() == [2, 1, 0]
        assert xp.to_numpy(indices).dtype == np.int64


class TestPromise6Dtypes:
    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
    def test_outputs_have_the_inputs_dtype_and_half_is_accumulated_in_float32(
        self, dtype: type
    ) -> None:
        wide = np.float64 if dtype is np.float64 else np.float32
        problem, layer = attention().astype(dtype), ffn().astype(dtype)
        pairs = (
            (calls.topk_attention(problem), calls.topk_attention(problem.astype(wide))),
            (calls.dense_attention(problem), calls.dense_attention(problem.astype(wide))),
            (calls.topk_ffn(layer), calls.topk_ffn(layer.astype(wide))),
            (calls.dense_ffn(layer), calls.dense_ffn(layer.astype(wide))),
        )
        for run, expected in pairs:
            results = zip((run.out, *run.grads), (expected.out, *expected.grads), strict=True)
            for result, unrounded in results:
                if result is not None and unrounded is not None:
                    assert result.dtype == dtype
                    assert_rounded_once(result, unrounded)

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("size", [1.0, 60.0], ids=["ordinary", "beyond-float16"])
    def test_half_precision_errs_by_one_rounding_and_by_that_of_the_scores_in_float32(
        self, dtype: type, size: float
    ) -> None:
        """Against float64 on the same numbers; also products beyond 65,504, where float16 ends."""
        normal = np.random.default_rng(0).standard_normal
        shapes = (50, 64), (50, 64), (50, 8)
        half: list[Any] = [(size * normal(shape)).astype(dtype) for shape in shapes]
        exact = [array.astype(np.float64) for array in half]
        products = np.abs(exact[0]) @ np.abs(exact[1]).T
        assert size == 1 or products.max() > 65_504
        in_scores = 64 * 2.0**-24 * products.max(axis=1, keepdims=True) / 8
        largest = np.abs(exact[2]).max()
        unit = 2.0**-10 if dtype is np.float16 else 2.0**-7
        for k in (7, 50):
            out = topk_np.topk_attention(*half, k=k).astype(np.float64)
            wanted = topk_np.topk_attention(*exact, k=k)
            allowed = unit / 2 * np.abs(wanted) + 2 * largest * (in_scores + 50 * 2.0**-24)
            assert np.all(np.isfinite(out))
            assert np.all(np.abs(out - wanted) <= allowed)

    def test_integers_lists_and_mixed_libraries_are_refused(self) -> None:
        x = np.ones((2, 2))
        for wrong in (x.astype(int), x.tolist(), x.astype(object)):
            with pytest.raises(TypeError, match="value must"):
                topk_np.topk_attention(x, x, wrong, k=1)


class TestPromise7WorkersChangeNothing:
    def test_results_are_bit_identical_for_any_number_of_workers(self) -> None:
        for call in (calls.topk_attention, calls.dense_attention):
            one = call(attention(), workers=1)
            with ThreadPoolExecutor(3) as pool:
                others = [call(attention(), workers=workers) for workers in (2, 3, 8, pool)]
            for run in others:
                for result, expected in zip(
                    (run.out, *run.grads), (one.out, *one.grads), strict=True
                ):
                    assert_same_bits(result, expected)

    def test_chunk_size_and_budget_change_rounding_only(self) -> None:
        problem = replace(attention(whole=True), chunk_size=None)
        one = calls.topk_attention(problem)
        budgets: tuple[dict[str, Any], ...] = (
            {"chunk_size": 1},
            {"chunk_size": 11},
            {"memory_budget": 2**14},
        )
        for more in budgets:
            run = calls.topk_attention(problem, **more)
            assert_same_bits(run.residuals.indices, one.residuals.indices)
            assert_close(run.out, one.out, size=problem.size)
            assert_all_close(run.grads, one.grads, size=problem.size)


class TestPromise8Dropout:
    def test_it_does_not_depend_on_chunks_or_workers_and_the_backward_pass_replays_it(self) -> None:
        problem = replace(attention(), dropout=(0.4, 11))
        for call in (calls.topk_attention, calls.dense_attention):
            one = call(problem, chunk_size=None, workers=1)
            plain = call(replace(problem, dropout=None), chunk_size=None)
            assert not np.allclose(one.out, plain.out)
            for chunk_size, workers in ((1, 1), (5, 3)):
                run = call(problem, chunk_size=chunk_size, workers=workers)
                assert_close(run.out, one.out, size=problem.size)
                assert_all_close(run.grads, one.grads, size=problem.size)
        # The output is linear in the values, so their gradient shows which weights were dropped.
        identity = replace(problem, value=np.eye(16)[None], dout=np.zeros((2, 12, 16)))
        dropped = calls.dense_attention(identity).out == 0
        (_, residuals), dout = self._fwd(problem), np.zeros((2, 12, 5))
        for head, query in np.ndindex(2, 12):
            dout[...] = 0
            dout[head, query] = 1
            grad = topk_np.dense_attention_bwd(residuals, dout).value
            assert np.array_equal(np.all(grad[0] == 0, axis=-1), dropped[head, query])

    @staticmethod
    def _fwd(problem: AttentionProblem) -> Any:
        return topk_np.dense_attention_fwd(*problem.arrays, **problem.dense_options)


class TestPromise9InputsAreOnlyRead:
    def test_inputs_are_unchanged_and_share_no_memory_with_results(self) -> None:
        # NumPy arrays reach the calls as read-only views, here of arrays with odd strides.
        problem = attention()
        wide = np.repeat(problem.key, 2, axis=-1)
        strided = replace(problem, key=wide[..., ::2])
        before = wide.copy()
        for call in (calls.topk_attention, calls.dense_attention):
            run, expected = call(strided), call(problem)
            assert_close(run.out, expected.out, size=problem.size)
            assert_same_bits(wide, before)
            for result in (run.out, *run.grads):
                for array in (*strided.arrays, strided.dout):
                    assert result is None or not np.shares_memory(result, array)


class TestPromise10Errors:
    def test_an_error_names_the_argument_shows_what_came_and_says_what_is_allowed(self) -> None:
        x = np.ones((2, 2))
        with pytest.raises(ValueError, match=r"k must be at least 1, got 0"):
            topk_np.topk_attention(x, x, x, k=0)
        with pytest.raises(TypeError, match=r"k must be an integer, got 2\.5 \(float\)"):
            topk_np.topk_attention(x, x, x, k=2.5)  # type: ignore[arg-type]
