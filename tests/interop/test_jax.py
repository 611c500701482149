"""Our functions inside JAX."""

from __future__ import annotations

import doctest
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import topk_np
from tests import calls
from tests.backends import backend
from tests.oracles import assert_all_close, assert_same_bits
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, few_examples, ffn_FD

jax = pytest.importorskip("jax", reason="JAX is not installed; `make peers` installs it")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import topk_np.interop.jax  # noqa: E402
from topk_np.interop.jax import as_jax  # noqa: E402

JAX = backend("jax")

topk_attention = as_jax(topk_np.topk_attention_fwd, topk_np.topk_attention_bwd)
dense_attention = as_jax(topk_np.dense_attention_fwd, topk_np.dense_attention_bwd)
topk_ffn = as_jax(topk_np.topk_ffn_fwd, topk_np.topk_ffn_bwd)
multihead = as_jax(topk_np.multihead_attention_fwd, topk_np.multihead_attention_bwd)


def normal(*shape: int, seed: int = 0, dtype: Any = None) -> Any:
    """An array of normal numbers, no two of which are equal."""
    numbers = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return jnp.asarray(numbers, dtype=dtype or jnp.float64)


def qkv(queries: int = 4, keys: int = 6, **more: Any) -> tuple[Any, Any, Any]:
    return (
        normal(2, queries, 3, **more),
        normal(2, keys, 3, seed=1, **more),
        normal(2, keys, 5, seed=2, **more),
    )


def softmax_attention(query: Any, key: Any, value: Any) -> Any:
    return jax.nn.softmax(query @ key.mT / query.shape[-1] ** 0.5) @ value


def loss_of(function: Any, **options: Any) -> Any:
    return lambda *arrays: jnp.square(function(*arrays, **options)).sum()


def assert_equal_trees(found: Any, expected: Any, **close: float) -> None:
    close = {"rtol": 1e-7, "atol": 1e-12, **close}
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one, other, rtol=close["rtol"], atol=close["atol"]
        ),
        found,
        expected,
    )


class TestTheResultIsThatOnNumPyArrays:
    @given(problem=attention_QND())
    def test_of_attention(self, problem: AttentionProblem) -> None:
        expected = calls.topk_attention(problem)
        arrays, options, dout = problem.on(JAX)
        assert_same_bits(np.asarray(topk_attention(*arrays, **options)), expected.out)
        out, pullback = jax.vjp(lambda *arrays: topk_attention(*arrays, **options), *arrays)
        assert_same_bits(np.asarray(out), expected.out)
        for found, grad in zip(pullback(dout), expected.grads[:3], strict=True):
            assert_same_bits(np.asarray(found), grad)

    @given(problem=ffn_FD())
    @few_examples()
    def test_of_the_feed_forward_layer_and_its_optional_arrays(self, problem: FFNProblem) -> None:
        expected = calls.topk_ffn(problem)
        arrays, options, dout = problem.on(JAX)
        optional = {name: options.pop(name) for name in problem.optional}

        def layer(arrays: Any, optional: Any) -> Any:
            return topk_ffn(*arrays, **optional, **options)

        out, pullback = jax.vjp(layer, arrays, optional)
        grads, more = pullback(dout)
        assert_same_bits(np.asarray(out), expected.out)
        found = [
            None if grad is None else np.asarray(grad)
            for grad in (*grads, *(more[name] for name in problem.optional))
        ]
        assert_all_close(found, expected.grads, size=problem.size)


class TestCheckGradsPasses:
    @pytest.mark.parametrize("k", [1, 3, 6])
    def test_for_topk_attention(self, k: int) -> None:
        mask = jnp.tril(jnp.ones((4, 6), bool), 3)
        check_grads(partial(topk_attention, k=k, mask=mask), qkv(), order=1, modes=["rev"])

    def test_for_dense_attention_with_options_by_position(self) -> None:
        offset = jnp.asarray([2, 0])
        attention = partial(dense_attention, is_causal=True, query_offset=offset)
        check_grads(attention, qkv(), order=1, modes=["rev"])

    def test_for_a_gated_layer_with_biases(self) -> None:
        def layer(x: Any, keys: Any, values: Any, key_bias: Any, value_bias: Any, gate: Any) -> Any:
            more = {"key_bias": key_bias, "value_bias": value_bias, "gate": gate}
            return topk_ffn(x, keys, values, k=2, activation="silu", **more)

        shapes = ((3, 4), (5, 4), (5, 2), (5,), (2,), (5, 4))
        arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        check_grads(layer, arrays, order=1, modes=["rev"])

    @pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["at once", "compiled"])
    def test_for_a_bias_softcap_dropout_and_the_log_sum_exp(self, wrap: Any) -> None:
        def attention(*arrays: Any) -> Any:
            *inputs, bias = arrays
            more = {"softcap": 2.0, "dropout": (0.3, 7), "return_lse": True}
            return topk_attention(*inputs, bias=bias, k=3, **more)

        arrays = (*qkv(), normal(1, 4, 6, seed=9))
        check_grads(wrap(attention), arrays, order=1, modes=["rev"])

    def test_for_a_table_of_biases_in_a_dataclass(self) -> None:
        def attention(*arrays: Any) -> Any:
            *inputs, table = arrays
            return topk_attention(*inputs, bias=topk_np.T5Bias(table), k=3, query_offset=0)

        check_grads(attention, (*qkv(), normal(8, 2)), order=1, modes=["rev"])

    def test_for_weights_in_a_named_tuple(self) -> None:
        weights = topk_np.MultiheadWeights(*(normal(4, 4, seed=1 + i) for i in range(4)))
        layer = partial(multihead, heads=2, k=3)
        check_grads(layer, (normal(5, 4), weights), order=1, modes=["rev"])


class TestTransformations:
    def test_all_keys_give_the_attention_and_gradients_of_jax(self) -> None:
        arrays = qkv()
        assert_equal_trees(topk_attention(*arrays, k=6), softmax_attention(*arrays))
        found = jax.grad(loss_of(topk_attention, k=6), (0, 1, 2))(*arrays)
        assert_equal_trees(found, jax.grad(loss_of(softmax_attention), (0, 1, 2))(*arrays))

    def test_compiled_results_are_the_same(self) -> None:
        arrays, attention = qkv(), partial(topk_attention, k=2)
        assert_equal_trees(jax.jit(attention)(*arrays), attention(*arrays))
        gradient = jax.value_and_grad(loss_of(topk_attention, k=2), (0, 1, 2))
        assert_equal_trees(jax.jit(gradient)(*arrays), gradient(*arrays))

    def test_compiled_code_keeps_scores_of_zero(self) -> None:
        # XLA flushes subnormal numbers to zero, here too, where it calls back.
        zeros, attention = [jnp.zeros((2, 3))] * 2, partial(topk_attention, k=2)
        found = jax.jit(attention)(*zeros, jnp.asarray([[2.0], [4.0]]))
        assert found.tolist() == [[3.0], [3.0]]

    def test_options_are_static_and_arrays_among_them_are_traced(self) -> None:
        arrays, mask = qkv(), jnp.tril(jnp.ones((4, 6), bool), 1)
        compiled = jax.jit(topk_attention, static_argnames=["k"])
        for allowed in (mask, ~mask):
            found = compiled(*arrays, k=2, mask=allowed)
            assert_equal_trees(found, topk_attention(*arrays, k=2, mask=allowed))

    def test_batches_are_one_call_after_another(self) -> None:
        arrays = qkv()
        whole = jax.value_and_grad(loss_of(topk_attention, k=2), (0, 1, 2))
        losses, grads = jax.vmap(whole)(*arrays)
        total, expected = whole(*arrays)
        np.testing.assert_allclose(losses.sum(), total)
        assert_equal_trees(grads, expected)

    def test_of_one_shared_argument_the_batches_gradients_are_added(self) -> None:
        query, key, value = qkv()
        batched = jax.vmap(partial(topk_attention, k=2), (0, None, None))
        found = jax.grad(loss_of(batched), 1)(query, key[0], value[0])
        expected = jax.grad(loss_of(topk_attention, k=2), 1)(query, key[0], value[0])
        assert_equal_trees(found, expected)

    def test_long_arrays_do_not_block_the_callback(self) -> None:
        arrays = [normal(2, 2048, 64, seed=seed, dtype=jnp.float32) for seed in range(3)]
        compiled = jax.jit(jax.grad(loss_of(topk_attention, k=8)))
        for _ in range(3):  # with results of one call waiting to be the arguments of the next
            arrays[0] = compiled(*arrays)
        assert bool(jnp.isfinite(arrays[0]).all())

    def test_a_loop_compiled_by_jax_can_call_it(self) -> None:
        query, key, value = qkv(6, 6)

        def step(query: Any, _: Any) -> Any:
            return topk_attention(query, key, value[..., :3], k=2), None

        found, _ = jax.lax.scan(step, query, length=3)
        for _ in range(3):
            query, _ = step(query, None)
        assert_equal_trees(found, query)


class TestArrays:
    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
    def test_results_have_the_dtype_of_the_arrays(self, name: str) -> None:
        arrays = qkv(dtype=getattr(jnp, name))
        wide = [array.astype(jnp.float64) for array in arrays]
        gradient = jax.value_and_grad(lambda *a: topk_attention(*a, k=3).sum(), (0, 1, 2))
        found, expected = gradient(*arrays), gradient(*wide)
        assert {grad.dtype.name for grad in found[1]} == {name}
        close = {"rtol": 0.05, "atol": 0.05} if "16" in name else {"rtol": 1e-4, "atol": 1e-5}
        as_wide = jax.tree.map(lambda array: array.astype(jnp.float64), found)
        assert_equal_trees(as_wide, expected, **close)

    def test_numpy_arrays_are_taken_as_jax_takes_them(self) -> None:
        arrays = [np.asarray(array) for array in qkv()]
        out = topk_attention(*arrays, k=2)
        assert isinstance(out, jax.Array)
        assert_equal_trees(out, topk_attention(*qkv(), k=2))

    def test_a_mask_function_is_called_with_numpy_arrays(self) -> None:
        kinds: list[type] = []

        def causal(queries: Any, keys: Any) -> Any:
            kinds.append(type(queries))
            return keys <= queries

        arrays = qkv(6, 6)
        found = jax.jit(partial(topk_attention, k=2, mask=causal))(*arrays)
        assert_equal_trees(found, topk_attention(*arrays, k=2, is_causal=True))
        assert set(kinds) == {np.ndarray}


class TestErrors:
    @pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["at once", "compiled"])
    def test_of_arguments_are_those_of_the_function(self, wrap: Any) -> None:
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            wrap(partial(topk_attention, k=0))(*qkv())

    def test_forward_mode_is_an_error(self) -> None:
        arrays = qkv()
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(partial(topk_attention, k=2), arrays, arrays)

    def test_a_gradient_that_does_not_exist_is_nan_not_zero(self) -> None:
        def fwd(x: Any, *, factor: Any) -> Any:
            return x * factor, factor

        double = as_jax(fwd, lambda factor, dout: (dout * factor,))
        x, factor = normal(3), normal(3, seed=1)
        dx, dfactor = jax.grad(lambda x, f: double(x, factor=f).sum(), (0, 1))(x, factor)
        assert_equal_trees(dx, factor)
        assert bool(jnp.isnan(dfactor).all())

    def test_an_output_that_is_no_array_is_an_error(self) -> None:
        pair = as_jax(lambda x: ([x], None), lambda residuals, dout: dout)
        with pytest.raises(TypeError, match=r"must be an array .* got .*list"):
            pair(normal(3))

    def test_what_cannot_be_called_is_refused(self) -> None:
        with pytest.raises(TypeError, match="fwd must be callable, got int"):
            as_jax(3, topk_np.topk_ffn_bwd)  # type: ignore[arg-type]


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(topk_np.interop.jax)
    assert result.attempted > 0
    assert result.failed == 0
