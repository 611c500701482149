"""Residuals: one line to read, indices and scores to look at, and they can be sent and copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import topk_np
from tests.backends import NUMPY, Array, Backend
from tests.oracles import assert_same_bits

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = RNG.standard_normal((3, 2, 3, 20, 4))
UNITS = RNG.standard_normal((4, 30, 4))
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "topk_attention": {
        "k": {"k": 5},
        "options": {
            "p": 0.8,
            "max_k": 6,
            "is_causal": True,
            "window": (7, 0),
            "mask": RNG.random((20, 20)) < 0.9,
            "bias": RNG.standard_normal((3, 20, 20)),
            "softcap": 2.0,
            "dropout": (0.2, 1),
            "always_keep": (1, 1),
            "key_lengths": np.array([[20], [15]]),
        },
        "T5": {"k": 5, "bias": topk_np.T5Bias(RNG.standard_normal((8, 3)), max_distance=12)},
        "ALiBi": {"k": 5, "bias": topk_np.ALiBi(RNG.standard_normal(3))},
    },
    "dense_attention": {"all": {}, "causal": {"is_causal": True, "bias": np.ones((20, 1))}},
    "topk_ffn": {
        "relu": {"k": 5},
        "gelu": {"k": 5, "activation": "gelu", "select": "activation"},
        "gated": {"k": 5, "activation": "silu", "gate": UNITS[2], "key_bias": UNITS[3, :, 0]},
        "softmax": {"k": 5, "activation": "softmax", "value_bias": UNITS[3, 0]},
    },
    "dense_ffn": {"relu": {}, "gated": {"activation": "gelu_tanh", "gate": UNITS[2]}},
}
CASES = [(name, case) for name, cases in OPTIONS.items() for case in cases]
each_case = pytest.mark.parametrize(("name", "case"), CASES)


def forward(name: str, case: str, xp: Backend = NUMPY, **more: Any) -> tuple[Array, Any]:
    """The output of a function, and residuals."""
    arrays = (QUERY, KEY, VALUE) if name.endswith("attention") else (QUERY, UNITS[0], UNITS[1])
    function = getattr(topk_np, f"{name}_fwd")
    made: tuple[Array, Any] = function(
        *xp.arrays(*arrays), **xp.options(OPTIONS[name][case]), **more
    )
    return made


def backward(name: str, residuals: Any, dout: Array, xp: Backend = NUMPY) -> list[Any]:
    """The gradients as NumPy arrays."""
    grads = getattr(topk_np, f"{name}_bwd")(residuals, dout)
    return [None if grad is None else xp.to_numpy(grad) for grad in grads]


@each_case
def test_a_summary_has_one_line_with_queries_keys_and_bytes(
    xp: Backend, name: str, case: str
) -> None:
    _, residuals = forward(name, case, xp)
    keys = 20 if name.endswith("attention") else 30
    topk = name.startswith("topk")
    kept = f"k={8 if case == 'options' else 5} of " if topk else ""
    assert repr(residuals) == (
        f"{type(residuals).__name__}(queries (2, 3, 20), {kept}{keys} keys, "
        f"{residuals.nbytes} bytes)"
    )
    assert str(residuals) == repr(residuals)


def test_the_chunk_size_is_that_of_the_forward_pass() -> None:
    for name, case in CASES:
        for size in (1, 7):
            _, residuals = forward(name, case, chunk_size=size)
            assert residuals.chunk_size == size


@each_case
def test_bytes_are_those_of_what_is_kept_beyond_the_inputs(name: str, case: str) -> None:
    _, residuals = forward(name, case)
    if name.startswith("dense"):
        assert residuals.nbytes == 0
        return
    slots = 8 if case == "options" else 5
    for array, dtype in ((residuals.scores, np.float64), (residuals.indices, np.int32)):
        assert array.shape == (2, 3, 20, slots)
        assert array.dtype == dtype
    linear = residuals.scores.nbytes if case == "gated" else 0
    assert residuals.nbytes == residuals.scores.nbytes + residuals.indices.nbytes + linear


@pytest.mark.parametrize(("name", "case"), [case for case in CASES if case[0].startswith("topk")])
def test_unused_slots_come_last_and_have_minus_one_and_minus_infinity(
    xp: Backend, name: str, case: str
) -> None:
    _, residuals = forward(name, case, xp)
    indices, scores = (xp.to_numpy(array) for array in (residuals.indices, residuals.scores))
    used = indices >= 0
    assert ((scores == -np.inf) == ~used).all()
    assert (indices[~used] == -1).all()
    assert (np.diff(np.where(used, indices, 99), axis=-1) > 0)[used[..., 1:]].all()


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda residuals: pickle.loads(pickle.dumps(residuals)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@each_case
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_gives_the_same_bits_of_gradients(
    xp: Backend, name: str, case: str, how: str
) -> None:
    out, residuals = forward(name, case, xp)
    copied = COPIES[how](residuals)
    assert type(copied) is type(residuals)
    assert repr(copied) == repr(residuals)
    for found, expected in zip(
        backward(name, copied, out, xp), backward(name, residuals, out, xp), strict=True
    ):
        assert_same_bits(found, expected)


@each_case
def test_residuals_of_a_call_with_an_executor_can_be_sent_without_it(name: str, case: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        out, residuals = forward(name, case, workers=pool)
        expected = backward(name, residuals, out)
        assert residuals.workers is pool
        for how in ("pickle", "deepcopy"):
            copied = COPIES[how](residuals)
            assert copied.workers is None
            for found, other in zip(backward(name, copied, out), expected, strict=True):
                assert_same_bits(found, other)


def test_residuals_are_equal_to_themselves_alone_and_can_be_keys(xp: Backend) -> None:
    """Arrays would have no one answer."""
    for name, case in CASES:
        (_, one), (_, other) = forward(name, case, xp), forward(name, case, xp)
        assert one == one
        assert one != other
        assert len({one, other}) == 2


def test_a_call_with_an_activation_of_ones_own_can_be_copied() -> None:
    squared = topk_np.activations.elementwise(lambda xp, s: s * s, lambda xp, s: 2 * s)
    out, residuals = topk_np.topk_ffn_fwd(*UNITS[:3], k=3, activation=squared)
    expected = topk_np.topk_ffn_bwd(residuals, out)
    found = topk_np.topk_ffn_bwd(copy.deepcopy(residuals), out)
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
