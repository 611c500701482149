"""One engine makes all products and selections of a call, and another can take its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import topk_np
import topk_np.kernels
from tests.backends import Backend
from tests.oracles import assert_close
from topk_np.kernels import portable

Call = Callable[[], list[np.ndarray]]


def in_its_place(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Put an engine in the place of NumPy's; what is called of it is counted."""
    called: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            called[name] += 1
            return function(*args, **kwargs)

        return call

    mine = {
        name: counted(name, thing) if callable(thing) and not name.startswith("_") else thing
        for name, thing in vars(portable).items()
    }
    monkeypatch.setattr(topk_np.kernels, "_module", lambda name: SimpleNamespace(**mine))
    return called


def attention(length: int, name: str, **options: Any) -> Call:
    """Forward and backward of two heads of self-attention of so many tokens."""
    query, key, value = np.random.default_rng(length).standard_normal((3, 2, length, 8))

    def call() -> list[np.ndarray]:
        fwd, bwd = (getattr(topk_np, f"{name}_attention_{way}") for way in ("fwd", "bwd"))
        out, residuals = fwd(query[:, :64], key, value, **options)
        return [out, *bwd(residuals, out)[:3]]

    return call


def ffn(length: int, name: str, **options: Any) -> Call:
    """Forward and backward of a feed-forward layer of so many units."""
    x, keys, values = np.random.default_rng(length).standard_normal((3, length, 8))

    def call() -> list[np.ndarray]:
        fwd, bwd = (getattr(topk_np, f"{name}_ffn_{way}") for way in ("fwd", "bwd"))
        out, residuals = fwd(x[:64], keys, values, **options)
        return [out, *bwd(residuals, out)[:3]]

    return call


TOPK = {"RunningTopK", "gather_matmul", "pattern", "product", "sampled_matmul", "scatter_matmul"}
DENSE = {"masked_matmul", "product", "zero_hidden"}


@pytest.mark.parametrize("length", [16, 128, 1024])
@pytest.mark.parametrize(
    ("make", "name", "options", "used"),
    [
        (attention, "topk", {"k": 8}, {*TOPK, "softmax", "softmax_vjp"}),
        (
            attention,
            "topk",
            {"k": 8, "is_causal": True, "query_offset": 0, "softcap": 3.0},
            {*TOPK, "hide_outside", "tanh"},
        ),
        (attention, "dense", {}, {*DENSE, "softmax", "softmax_vjp"}),
        (ffn, "topk", {"k": 8}, {*TOPK, "relu", "relu_vjp"}),
        (ffn, "dense", {"activation": "gelu"}, {*DENSE, "erf"}),
    ],
    ids=["topk", "causal", "dense", "ffn", "dense ffn"],
)
def test_an_engine_put_in_the_place_of_numpys_makes_all_products(
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    make: Callable[..., Call],
    name: str,
    options: dict[str, Any],
    used: set[str],
) -> None:
    """Of short heads and long ones alike, forward and backward."""
    call = make(length, name, **options)
    expected = call()
    called = in_its_place(monkeypatch)
    found = call()
    assert used <= set(called)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, size=1000.0)


def test_what_a_new_engine_selects_is_what_a_query_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    class First(portable.RunningTopK):
        """Keeps the first keys, whatever their scores."""

        def add(self, scores: Any, start: int, *others: Any) -> None:
            super().add(-np.arange(start, start + scores.shape[-1]) + 0 * scores, start, *others)

    mine = {**vars(portable), "RunningTopK": First}
    monkeypatch.setattr(topk_np.kernels, "_module", lambda name: SimpleNamespace(**mine))
    for length in (16, 128, 1024):
        x = np.random.default_rng(0).standard_normal((3, length, 4))
        _, residuals = topk_np.topk_attention_fwd(x, x, x, k=5)
        assert (residuals.indices == np.arange(5)).all()


@pytest.mark.parametrize("chosen", ["", "numpy", "portable", "atomic"])
def test_every_engine_that_can_be_chosen_gives_the_same_up_to_rounding(
    xp: Backend, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    arrays = xp.arrays(*np.random.default_rng(0).standard_normal((3, 2, 30, 4)))
    expected = xp.to_numpy(topk_np.topk_attention(*arrays, k=4))
    monkeypatch.setenv("TOPK_NP_KERNELS", chosen)
    out, residuals = topk_np.topk_attention_fwd(*arrays, k=4)
    assert_close(xp.to_numpy(out), expected, size=10.0)
    if xp.name != "numpy" or chosen == "portable":
        assert (residuals.call.ops is portable) == (xp.name != "cupy" or chosen == "portable")


def test_another_word_for_an_engine_is_refused(
    xp: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x,) = xp.arrays(np.ones((4, 4)))
    monkeypatch.setenv("TOPK_NP_KERNELS", "quick")
    with pytest.raises(ValueError, match=r"^TOPK_NP_KERNELS must be empty, .*, got 'quick'$"):
        topk_np.topk_attention(x, x, x, k=1)
