"""Pictures of what top-k attention keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from topk_np._namespace import Array, check_integer
from topk_np.diagnostics.cells import cell_sums, matrices_of, on_host

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "YlGnBu"  # from light to dark; their lightest fifth is too near to white
DECADES = 3  # of weights that colours tell apart
MOST_TICKS = 7


def plot_attention(
    attention: Any, /, *, head: tuple[int, ...] = (), cells: int = 256, ax: Axes | None = None
) -> Axes:
    """
    Draw an attention matrix: which keys the queries attend to, and how much.

    Parameters
    ----------
    attention : TopKAttentionResiduals, sparse array or array
        Residuals of `topk_attention_fwd` on NumPy or CuPy arrays; or the weights (Q, N) themselves,
        as a sparse matrix of SciPy or CuPy or a NumPy array.
    head : tuple of int, default ()
        Which head of the residuals: one index for each of the leading axes. With fewer, the mean of
        all the heads that are left.
    cells : int, default 256
        How many cells are drawn at most along each axis. A longer matrix is drawn in cells of
        several queries and keys: what the queries give to these keys together, on average.
    ax : matplotlib.axes.Axes, optional
        Where to draw, by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Colours go by the logarithm, over three decades; smaller weights have the lightest colour.
        What was not kept is white, NaN red.

    Raises
    ------
    TypeError, ValueError
        If one of the arguments is something else, `head` is not a place in the leading axes, or
        there is nothing to draw.
    ModuleNotFoundError
        If matplotlib is not installed: the extras `demo` and `bench` bring it.

    Notes
    -----
    Memory beyond what is given is that of one head's kept weights, as in `attention_csr`, and of
    the cells: a long matrix is never made dense.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import topk_attention_fwd
    >>> from topk_np.diagnostics import plot_attention
    >>> key = np.random.default_rng(0).standard_normal((2, 6, 4))
    >>> _, residuals = topk_attention_fwd(key, key, key, k=2)
    >>> ax = plot_attention(residuals, head=(1,))
    >>> ax.get_xlabel()
    'key'
    """
    most = check_integer("cells", cells, least=1)
    matrices, (queries, keys), heads = matrices_of(attention, head)
    if 0 in (queries, keys, heads):
        raise ValueError(
            f"attention must have a query and a key, got shape {(queries, keys)} of {heads} heads"
        )
    height, width = (-(-length // most) for length in (queries, keys))
    totals = (cell_sums(matrix, height, width) for matrix in matrices)
    counts = np.minimum(height, queries - np.arange(0, queries, height))
    shown = sum(totals, start=np.zeros(())) / (heads * counts[:, None])

    ax = _axes("plot_attention", ax)
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.ticker import MaxNLocator

    largest = float(np.max(shown, where=np.isfinite(shown), initial=0)) or 1.0
    least = largest / 10**DECADES
    colours = ListedColormap(colormaps[COLOURS](np.linspace(0.2, 1, 256)))
    image = ax.imshow(
        np.where(shown == 0, least / 2, np.where(shown < least, least, shown)),
        cmap=colours.with_extremes(under="white", bad="red"),
        norm=LogNorm(least, largest),
        interpolation="nearest",
        extent=(-0.5, width * shown.shape[1] - 0.5, height * shown.shape[0] - 0.5, -0.5),
        aspect="equal" if 1 / 3 <= queries / keys <= 3 else "auto",
    )
    ax.set(xlabel="key", ylabel="query", xlim=(-0.5, keys - 0.5), ylim=(queries - 0.5, -0.5))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    label = "attention weight" if width == 1 else f"attention to {width} keys"
    over = [f"{n} {of}" for n, of in ((height, "queries"), (heads, "heads")) if n > 1]
    if over:
        label += ", mean of " + " and ".join(over)
    ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0, 0.04, 1)), label=label)
    return ax


def plot_mass(
    mass: Array,
    /,
    *,
    k: list[int] | tuple[int, ...],
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """
    Draw how much of the softmax's weights is kept against k: the median query, and how others vary.

    Parameters
    ----------
    mass : array (len(k), ..., Q)
        From `kept_mass` with this `k`. Queries that may attend to nothing, whose mass is 0, are
        left out.
    k : list or tuple of int
        The numbers of kept keys, in any order.
    label : str, optional
        The name of the curve in a legend, for several in one picture.
    ax : matplotlib.axes.Axes, optional
        Where to draw, by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the median over all queries as a line, and bands that hold the middle half and the
        middle nine tenths of them.

    Raises
    ------
    TypeError, ValueError
        If `k` is not what `kept_mass` takes, the first axis of `mass` has another length, there
        is no query with anything to attend to, or a mass is NaN.
    ModuleNotFoundError
        If matplotlib is not installed: the extras `demo` and `bench` bring it.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.diagnostics import kept_mass, plot_mass
    >>> query, key = np.random.default_rng(0).standard_normal((2, 32, 8))
    >>> ks = [1, 2, 4, 8, 16, 32]
    >>> ax = plot_mass(kept_mass(query, key, k=ks), k=ks)
    >>> ax.get_ylabel()
    'kept softmax mass'
    """
    if not isinstance(k, (list, tuple)):
        raise TypeError(f"k must be a list or tuple of integers, got {k!r}")
    ks = np.asarray([check_integer("k", one, least=1) for one in k])
    kept = np.asarray(on_host(mass))
    if kept.ndim < 2 or len(kept) != len(ks) or len(ks) == 0:
        raise ValueError(
            f"mass must have shape (len(k), ..., Q) with len(k) = {len(ks)}, got {kept.shape}"
        )
    kept = kept.reshape(len(ks), -1)
    kept = kept[:, np.any(kept != 0, axis=0)]
    if kept.size == 0:
        raise ValueError("mass must have a query that may attend to a key, got none")
    if np.any(np.isnan(kept)):
        raise ValueError("mass must not be NaN, as it is where attention is, got NaN")

    ax = _axes("plot_mass", ax)
    order = np.argsort(ks)
    ks, levels = ks[order], np.quantile(kept[order], [0.05, 0.25, 0.5, 0.75, 0.95], axis=1)
    (line,) = ax.plot(ks, levels[2], marker="o", markersize=4, label=label or "median query")
    bands = (("9 of 10 queries", 0.15, 0, 4), ("half of all queries", 0.35, 1, 3))
    for name, alpha, low, high in bands:
        ax.fill_between(
            ks,
            levels[low],
            levels[high],
            label=None if label else name,
            color=line.get_color(),
            alpha=alpha,
            linewidth=0,
        )
    ax.set_xscale("log", base=2)
    ticks = ks[:: -(len(ks) // MOST_TICKS + 1)]
    ax.set_xticks(ticks, [str(one) for one in ticks])
    ax.minorticks_off()
    ax.legend(loc="lower right", frameon=False)
    ax.set(xlabel="k, keys kept for each query", ylabel="kept softmax mass", ylim=(0, 1.02))
    return ax


def _axes(caller: str, ax: Axes | None) -> Axes:
    """The axes to draw in: those given, or those of a new figure."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{caller} needs matplotlib: pip install 'topk_np[demo]'", name=error.name
        ) from None
    return pyplot.figure(layout="constrained").subplots()
