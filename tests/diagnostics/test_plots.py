"""Pictures hold the numbers that they claim to show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from scipy.sparse import coo_array, csr_array

from tests.backends import Backend
from topk_np import topk_attention_fwd
from topk_np.diagnostics import attention_csr, kept_mass, plot_attention, plot_mass

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 7, 4))
_, RESIDUALS = topk_attention_fwd(X, X, X, k=3, is_causal=True)


@pytest.fixture
def ax() -> Any:
    return Figure(layout="constrained").subplots()


@pytest.fixture
def pyplot() -> Iterator[Any]:
    """Figures without a window, closed at the end."""
    mpl.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def shown(ax: Any) -> np.ndarray:
    """The weights of an image; 0 where it is white."""
    (image,) = ax.images
    weights = np.asarray(image.get_array())
    return np.where(weights < image.norm.vmin, 0, weights)


def dense(residuals: Any, head: tuple[int, ...]) -> np.ndarray:
    return np.asarray(attention_csr(residuals, head=head).toarray())


def test_a_short_matrix_is_drawn_as_it_is(ax: Any) -> None:
    assert plot_attention(RESIDUALS, head=(1, 2), ax=ax) == ax
    expected = dense(RESIDUALS, (1, 2))
    least = expected.max() / 1000
    np.testing.assert_allclose(
        shown(ax), np.where((expected > 0) & (expected < least), least, expected), rtol=1e-12
    )
    assert ax.images[0].get_extent() == [-0.5, 6.5, 6.5, -0.5]
    assert ax.images[0].colorbar.ax.get_ylabel() == "attention weight"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")


def test_with_fewer_indices_the_mean_of_the_other_heads_is_drawn(ax: Any) -> None:
    plot_attention(RESIDUALS, head=(1,), ax=ax)
    expected = np.mean([dense(RESIDUALS, (1, i)) for i in range(3)], axis=0)
    assert np.array_equal(shown(ax) > 0, expected > 0)
    seen = expected > expected.max() / 1000
    np.testing.assert_allclose(shown(ax)[seen], expected[seen], rtol=1e-12)
    assert ax.images[0].colorbar.ax.get_ylabel() == "attention weight, mean of 3 heads"


@given(
    weights=hnp.arrays(
        float, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 9])
    ),
    cells=st.integers(1, 10),
    form=st.sampled_from([np.asarray, csr_array, coo_array]),
)
def test_a_long_matrix_is_drawn_in_cells(weights: np.ndarray, cells: int, form: Any) -> None:
    ax: Any = plot_attention(form(weights), cells=cells, ax=Figure().subplots())
    height, width = (-(-n // cells) for n in weights.shape)
    expected = [
        [
            weights[i : i + height, j : j + width].sum(axis=1).mean()
            for j in range(0, weights.shape[1], width)
        ]
        for i in range(0, weights.shape[0], height)
    ]
    assert max(shown(ax).shape) <= cells
    np.testing.assert_allclose(shown(ax), expected, rtol=1e-12)
    left, right, bottom, top = ax.images[0].get_extent()
    assert right - left == width * shown(ax).shape[1]
    assert bottom - top == height * shown(ax).shape[0]


def test_rows_of_a_long_matrix_are_added_up_some_at_a_time(
    ax: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = RNG.random((11, 5))
    monkeypatch.setattr("topk_np.diagnostics.cells.ROWS", 3)
    plot_attention(weights, cells=2, ax=ax)
    expected = [
        [rows[:, columns].sum() / len(rows) for columns in (slice(0, 3), slice(3, 5))]
        for rows in (weights[:6], weights[6:])
    ]
    np.testing.assert_allclose(shown(ax), expected, rtol=1e-12)
    label = "attention to 3 keys, mean of 6 queries"
    assert ax.images[0].colorbar.ax.get_ylabel() == label


def test_white_is_what_was_not_kept_and_red_what_is_nan(ax: Any) -> None:
    plot_attention(np.asarray([[0, np.nan], [1e-7, 1]], np.float16), ax=ax)
    (image,) = ax.images
    assert np.array_equal(image.to_rgba(image.get_array())[0], [(1, 1, 1, 1), (1, 0, 0, 1)])
    lightest, darkest = image.to_rgba(image.get_array())[1, :, :3].sum(axis=1)
    assert darkest < lightest < 2.8


def test_a_picture_can_be_saved_with_nothing_kept(ax: Any, tmp_path: Any) -> None:
    plot_attention(csr_array((3, 200)), ax=ax)
    ax.figure.savefig(tmp_path / "nothing.png")
    assert not np.any(shown(ax))


def test_without_axes_there_is_a_new_figure(pyplot: Any) -> None:
    axes = [plot_attention(RESIDUALS), plot_mass([[0.5, 0.25]], k=[1])]
    assert len({ax.figure for ax in axes}) == 2
    assert axes[1] is pyplot.gca()


@pytest.mark.usefixtures("without_cusparse")
def test_what_lies_on_a_device_is_drawn_too(xp: Backend, ax: Any) -> None:
    (x,) = xp.arrays(X)
    mass = kept_mass(x, x, k=[1, 2])
    if xp.name in ("numpy", "cupy"):
        plot_mass(mass, k=[1, 2], ax=ax)
        np.testing.assert_allclose(ax.lines[0].get_ydata()[1], np.median(xp.to_numpy(mass)[1]))
        residuals = topk_attention_fwd(x, x, x, k=3, is_causal=True)[1]
        for attention in (residuals, attention_csr(residuals, head=(1, 2))):
            head = (1, 2) if attention is residuals else ()
            drawn: Any = plot_attention(attention, head=head, ax=Figure().subplots())
            expected = dense(RESIDUALS, (1, 2))
            assert np.array_equal(shown(drawn) > 0, expected > 0)


ATTENTION: Any = [
    ([[1.0]], {}, TypeError, "attention must be residuals of topk_attention_fwd, .* got list"),
    (np.zeros(3), {}, ValueError, r"attention must have shape \(Q, N\), got \(3,\)"),
    (np.zeros((0, 3)), {}, ValueError, r"must have a query and a key, got shape \(0, 3\)"),
    (np.asarray([[0.5, -1]]), {}, ValueError, "weights of at least 0, got -1"),
    (np.eye(2), {"cells": 0}, ValueError, "cells must be at least 1, got 0"),
    (np.eye(2), {"head": (0,)}, ValueError, r"unless residuals are given, got \(0,\)"),
    (RESIDUALS, {"head": (2,)}, ValueError, r"the leading axes \(2, 3\), got \(2,\)"),
    (RESIDUALS, {"head": [1]}, TypeError, "head must be a tuple of integers, got list"),
]


@pytest.mark.parametrize(("attention", "options", "error", "message"), ATTENTION)
def test_what_cannot_be_drawn_is_named(
    attention: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_attention(attention, ax=Figure().subplots(), **options)


@given(ks=st.lists(st.integers(1, 9), min_size=1, max_size=12, unique=True))
def test_curve_and_bands_are_quantiles_over_queries(ks: list[int]) -> None:
    mass = kept_mass(X[0], X[0], k=ks)
    ax: Any = plot_mass(mass, k=ks, ax=Figure().subplots())
    (line,) = ax.lines
    assert list(line.get_xdata()) == sorted(ks)
    order = np.argsort(ks)
    np.testing.assert_allclose(line.get_ydata(), np.median(mass[order], axis=(1, 2)))
    for band, levels in zip(ax.collections, ((0.05, 0.95), (0.25, 0.75)), strict=True):
        heights = {round(y, 9) for y in np.asarray(band.get_paths()[0].vertices)[:, 1]}
        expected = np.quantile(mass.reshape(len(ks), -1), levels, axis=1)
        assert heights == {round(y, 9) for y in expected.ravel()}
    assert {text.get_text() for text in ax.get_xticklabels()} <= {str(k) for k in ks}
    assert str(max(ks)) in {text.get_text() for text in ax.get_xticklabels()}


def test_queries_without_a_key_are_left_out(ax: Any) -> None:
    plot_mass(np.asarray([[0.5, 0.0, 0.7], [0.9, 0.0, 1.0]]), k=(2, 4), ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.6, 0.95])


def test_several_curves_are_told_apart_by_their_labels(ax: Any) -> None:
    for head in range(3):
        plot_mass(kept_mass(X[0, head], X[0, head], k=[1, 2]), k=[1, 2], label=f"{head}", ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2"]
    assert len({line.get_color() for line in ax.lines}) == 3


@pytest.mark.parametrize(
    ("mass", "k", "error", "message"),
    [
        (np.ones((2, 3)), [1], ValueError, r"with len\(k\) = 1, got \(2, 3\)"),
        (np.ones(2), [1, 2], ValueError, r"\(len\(k\), ..., Q\) .* got \(2,\)"),
        (np.ones((0, 3)), [], ValueError, r"len\(k\) = 0"),
        (np.ones((1, 3)), [1.5], TypeError, "k must be an integer, got 1.5"),
        (np.ones((1, 3)), 1, TypeError, "k must be a list or tuple of integers, got 1"),
        (np.zeros((1, 3)), [1], ValueError, "a query that may attend to a key, got none"),
        (np.asarray([[1, np.nan]]), [1], ValueError, "mass must not be NaN"),
    ],
)
def test_a_mass_that_cannot_be_drawn_is_named(
    mass: Any, k: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot_mass(mass, k=k, ax=Figure().subplots())


@pytest.mark.parametrize("plot", [plot_attention, plot_mass])
def test_without_matplotlib_the_error_says_how_to_get_it(
    plot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = (np.eye(2), {}) if plot is plot_attention else (np.ones((1, 2)), {"k": [1]})
    with pytest.raises(ModuleNotFoundError, match=rf"{plot.__name__} needs matplotlib: pip"):
        plot(given[0], **given[1])
