"""Encoder and decoder blocks: by their definition, and what they promise however they compute."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given

from tests.backends import NUMPY, Backend
from tests.layers.blocks import KEYS, QUERIES, Problem, problem, problems, written_out
from tests.oracles import assert_all_close, assert_close, assert_same_bits
from tests.strategies import few_examples
from topk_np.layers import (
    BlockConfig,
    decoder_block,
    decoder_block_bwd,
    encoder_block,
    encoder_block_bwd,
    encoder_block_fwd,
)
from topk_np.layers.attention_kinds import KINDS
from topk_np.testing import check_vjp

PAIR = pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
ANY_WAY = pytest.mark.parametrize("attention", list(KINDS))


def undropped(block: Problem) -> Problem:
    return replace(block, options={**block.options, "dropout_seed": None})


def run(block: Problem, xp: Backend = NUMPY) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Output and gradients as NumPy arrays; the gradient sent back is drawn."""
    on_xp = replace(block, options=xp.options(block.options))
    out, residuals = on_xp.fwd(*xp.arrays(*block.arrays))
    dout = np.random.default_rng(5).standard_normal(tuple(out.shape))
    grads = on_xp.bwd(residuals, xp.asarray(dout))
    return xp.to_numpy(out), tuple(xp.to_numpy(grad) for grad in grads)


@given(block=problems())
@example(problem(BlockConfig(2, "topk", k=2, ffn_k=2), decoder=True))
@example(problem(BlockConfig(2, "performer", features=6), decoder=True))
@example(problem(BlockConfig(2, "rfa", features=6), decoder=False))
@example(problem(BlockConfig(2, norm="rms", norm_first=False), decoder=False, gated=True))
def test_a_block_is_its_parts_each_with_a_norm_and_a_sum(block: Problem) -> None:
    block = undropped(block)
    assert_close(block.out(), written_out(block), size=1e3)
    whole: Any = encoder_block if block.context is None else decoder_block
    inputs = (block.x,) if block.context is None else (block.x, block.context)
    assert_same_bits(whole(*inputs, block.params, block.config, **block.options), block.out())


@few_examples()
@given(block=problems())
@example(problem(BlockConfig(2, "topk", k=2, dropout=0.5), decoder=True, dropout_seed=1))
@example(problem(BlockConfig(2, "rfa", features=6, norm="rms"), decoder=True, gated=True))
@example(problem(BlockConfig(2, ffn_k=2, norm_first=False, dropout=0.5), decoder=False))
def test_gradients_are_slopes(block: Problem) -> None:
    check_vjp(block.fwd, block.bwd, *block.arrays)


@few_examples()
@given(block=problems())
def test_every_library_gives_the_same(xp: Backend, block: Problem) -> None:
    (out, grads), (wanted, wanted_grads) = run(block, xp), run(block)
    assert_close(out, wanted, size=1e4)
    assert_all_close(grads, wanted_grads, size=1e6)


@given(block=problems())
def test_recomputation_gives_the_same_bits_and_keeps_nothing(block: Problem) -> None:
    again = replace(block, config=replace(block.config, recompute=True))
    (out, grads), (wanted, wanted_grads) = run(again), run(block)
    for one, other in zip((out, *grads), (wanted, *wanted_grads), strict=True):
        assert_same_bits(one, other)
    assert again.fwd(*again.arrays)[1].nbytes == 0
    assert block.fwd(*block.arrays)[1].nbytes > block.x.nbytes


@PAIR
@pytest.mark.parametrize("recompute", [False, True])
def test_the_way_back_can_be_taken_twice(decoder: bool, recompute: bool) -> None:
    config = BlockConfig(2, "topk", k=2, dropout=0.5, recompute=recompute)
    block = problem(config, decoder=decoder, dropout_seed=1)
    out, residuals = block.fwd(*block.arrays)
    once, again = block.bwd(residuals, out), block.bwd(residuals, out)
    for one, other in zip(once, again, strict=True):
        assert_same_bits(one, other)


@ANY_WAY
@PAIR
@pytest.mark.parametrize("norm_first", [True, False])
def test_residuals_say_how_much_is_kept(attention: str, decoder: bool, norm_first: bool) -> None:
    config = BlockConfig(2, attention, k=16, ffn_k=8, norm_first=norm_first)
    rng = np.random.default_rng(0)
    params = config.init(rng, width=32, hidden=32, context_width=32 if decoder else None)
    x = rng.standard_normal((2, 512, 32), np.float32)
    block = Problem(config, params, x, x.copy() if decoder else None)
    block.fwd(*block.arrays)  # imports whatever is imported late
    tracemalloc.start()
    try:
        out, residuals = block.fwd(*block.arrays)
        held = tracemalloc.get_traced_memory()[0] - out.nbytes
    finally:
        tracemalloc.stop()
    assert held == pytest.approx(residuals.nbytes, rel=0.03)


@PAIR
def test_dropout_depends_on_its_seed_and_is_off_without_one(decoder: bool) -> None:
    config = BlockConfig(2, dropout=0.5)
    outs = [problem(config, decoder=decoder, dropout_seed=seed).out() for seed in (None, 0, 0, 1)]
    assert_same_bits(outs[1], outs[2])
    for one, other in ((0, 1), (1, 3)):
        assert np.mean(outs[one] == outs[other]) < 0.5
    plain = problem(replace(config, dropout=0.0), decoder=decoder, dropout_seed=1)
    assert_same_bits(plain.out(), outs[0])


@PAIR
def test_each_part_of_a_block_is_dropped_by_a_seed_of_its_own(decoder: bool) -> None:
    """With nothing but a bias in each part, what is dropped can be read off the output."""
    block = problem(BlockConfig(2, dropout=0.5), decoder=decoder, dropout_seed=3)
    names = ["attention", "cross", "ffn"] if decoder else ["attention", "ffn"]
    kept = []
    for name in names:
        params: Any = {part: dict(own) for part, own in block.params.items()}
        for other in names:
            last = ("values", "value_bias") if other == "ffn" else ("out", "out_bias")
            params[other][last[0]] = np.zeros_like(params[other][last[0]])
            params[other][last[1]] = np.full_like(params[other][last[1]], float(other == name))
        added = block.out(params=params) - block.x
        np.testing.assert_allclose(np.unique(added.round(12)), [0.0, 2.0])
        kept.append(added > 1)
    for i, one in enumerate(kept):
        assert all(np.any(one != other) for other in kept[:i])


@ANY_WAY
@PAIR
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_causal_block_never_looks_ahead(attention: str, decoder: bool, norm_first: bool) -> None:
    config = BlockConfig(2, attention, k=2, features=6, chunk_size=2, norm_first=norm_first)
    options = {} if decoder else {"is_causal": True}
    block = problem(config, decoder=decoder, **options)
    whole = block.out()
    for i in range(1, QUERIES):
        x = block.x.copy()
        x[:, i:] = np.nan
        out = block.out(x=x)
        assert_close(out[:, :i], whole[:, :i], size=1e3)
        assert np.isnan(out[:, i:]).all()


@ANY_WAY
def test_padding_of_the_context_contributes_nothing_even_if_it_is_nan(attention: str) -> None:
    config = BlockConfig(2, attention, k=2, features=6, chunk_size=2)
    lengths = np.array([KEYS, 2])
    block = problem(config, decoder=True, context_lengths=lengths)
    assert block.context is not None
    context = block.context.copy()
    context[1, 2:] = np.nan
    (out, grads), (wanted, wanted_grads) = run(replace(block, context=context)), run(block)
    assert_close(out, wanted, size=1e2)
    assert_all_close(grads, wanted_grads, size=1e3)
    assert not grads[1][1, 2:].any()
    short = replace(block, x=block.x[1:], context=block.context[1:, :2], options={})
    assert_close(short.out(), out[1:], size=1e2)


@ANY_WAY
def test_padding_contributes_nothing_to_other_rows(attention: str) -> None:
    config = BlockConfig(2, attention, k=2, features=6, chunk_size=2)
    block = problem(config, decoder=False, lengths=np.array([3, QUERIES]))
    x = block.x.copy()
    x[0, 3:] = np.nan
    out = block.out(x=x)
    assert_close(out[0, :3], block.out()[0, :3], size=1e2)
    assert_close(block.out(x=block.x[:1, :3], options={})[0], out[0, :3], size=1e2)


def test_options_reach_the_layers_they_are_for() -> None:
    config = BlockConfig(
        2,
        attention_options={"window": (0, 0)},
        cross_options={"mask": np.arange(KEYS) == 2},
        ffn_options={"activation": "gelu"},
    )
    block = problem(config, decoder=True)
    assert block.context is not None
    # Alone with itself and one row of the context, a row does not see what is around it.
    for i in range(QUERIES):
        alone = block.out(x=block.x[:, i : i + 1])
        assert_close(alone, block.out()[:, i : i + 1], size=1e2)
    seen = block.out(context=np.where((np.arange(KEYS) == 2)[:, None], block.context, 9.0))
    assert_close(seen, block.out(), size=1e2)
    relu = replace(config, ffn_options={})
    assert np.abs(block.out(config=relu) - block.out()).max() > 1e-2


def test_half_precision_stays_half_and_close_to_single() -> None:
    config = BlockConfig(2, "topk", k=3)
    block = problem(config, decoder=False, lengths=np.array([3, QUERIES]))
    found = {}
    for dtype in (np.float16, np.float32):
        arrays = [array.astype(dtype) for array in block.arrays]
        out, residuals = block.fwd(*arrays)
        grads = block.bwd(residuals, np.ones_like(out))
        assert {array.dtype for array in (out, *grads)} == {np.dtype(dtype)}
        found[dtype] = np.asarray(out, np.float64)
    np.testing.assert_allclose(found[np.float16], found[np.float32], atol=0.1)


def test_inputs_are_not_written_to_and_not_shared_with_results() -> None:
    block = problem(BlockConfig(2, "topk", k=2, dropout=0.5), decoder=True, dropout_seed=0)
    arrays = NUMPY.arrays(*block.arrays)  # read-only
    out, residuals = block.fwd(*arrays)
    grads = block.bwd(residuals, NUMPY.asarray(np.ones(out.shape)))
    for result in (out, *grads):
        assert not any(np.shares_memory(array, result) for array in arrays)


def test_bad_arguments_are_named() -> None:
    config = BlockConfig(2)
    encoder, decoder = (problem(config, decoder=decoder) for decoder in (False, True))
    other: Any = {"heads": 2}
    with pytest.raises(TypeError, match="config must be a BlockConfig, got dict"):
        encoder_block(encoder.x, encoder.params, other)
    with pytest.raises(ValueError, match="params must have 'attention_norm', 'attention', 'cross"):
        decoder_block(decoder.x, decoder.x, encoder.params, config)
    with pytest.raises(ValueError, match=r"params must have .* got none"):
        encoder_block(encoder.x, {}, config)
    with pytest.raises(TypeError, match=r"params must be a dict of arrays, got NoneType"):
        encoder_block(encoder.x, None, config)  # type: ignore[arg-type]
    for part, names, message in (
        ("ffn_norm", ["weight"], "must have 'weight', 'bias', got 'weight'"),
        ("attention", ["query", "key", "value"], "must have 'query', .* got 'query', 'key', 'val"),
        (
            "attention",
            [*encoder.params["attention"], "gate"],
            "must .* their biases, got .*'gate'",
        ),
    ):
        own = {name: encoder.params[part].get(name) for name in names}
        with pytest.raises(ValueError, match=rf"params\['{part}'\] {message}"):
            encoder_block(encoder.x, {**encoder.params, part: own}, config)
    residuals: Any = encoder_block_fwd(encoder.x, encoder.params, config)[1]
    with pytest.raises(TypeError, match="residuals must come from decoder_block_fwd, got Encoder"):
        decoder_block_bwd(residuals, encoder.x)
    with pytest.raises(ValueError, match=r"dout must have the shape of the output, \(2, 5, 4\)"):
        encoder_block_bwd(residuals, encoder.x[:1])
