"""Gradients held to a largest norm, all of them together."""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace, cast, check_number, compute_dtype
from topk_np.training.trees import Tree, flatten, tree_map


def clip_by_global_norm(grads: Tree, limit: float, /) -> tuple[Tree, Array]:
    """
    Scale gradients down so that together they are no longer than a limit.

    Parameters
    ----------
    grads : nested dict of arrays
        Floating arrays of one library and device; half precision is computed in float32.
    limit : float
        The largest norm, above 0.

    Returns
    -------
    clipped : nested dict of arrays
        ``grads * min(1, limit / norm)``, in the dtypes of `grads`.
    norm : array ()
        The Euclidean norm of all gradients before, on their device; NaN if any is NaN or infinite,
        and then so are the clipped gradients.

    Raises
    ------
    TypeError
        If `limit` is not a number, or a leaf not an array.
    ValueError
        If `limit` is not above 0, or there is no gradient.

    Notes
    -----
    Squares are taken of the gradients divided by the largest of them, and so cannot overflow.
    Pascanu et al. 2013, section 3.2, arXiv:1211.5063.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import clip_by_global_norm
    >>> clipped, norm = clip_by_global_norm({"a": np.array([3.0]), "b": np.array([4.0])}, 1.0)
    >>> clipped["a"], clipped["b"], float(norm)
    (array([0.6]), array([0.8]), 5.0)
    """
    if check_number("limit", limit) <= 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    leaves = [array for array in flatten(grads).values() if 0 not in array.shape]
    if not leaves:
        raise ValueError("grads must have at least one number, got none")
    xp = array_namespace(*leaves)
    wide = [cast(xp, array, compute_dtype(xp, array)) for array in leaves]
    largest = xp.max(xp.stack([xp.max(xp.abs(array)) for array in wide]))
    unit = xp.where(largest > 0, largest, xp.ones_like(largest))
    squares = [xp.sum((array / unit) ** 2) for array in wide]
    norm = largest * xp.sqrt(xp.sum(xp.stack(squares)))
    factor = limit / xp.where(norm <= limit, xp.full_like(norm, limit), norm)

    def scaled(array: Array) -> Array:
        wide = cast(xp, array, compute_dtype(xp, array))
        return cast(xp, xp.asarray(wide * factor), array.dtype)

    return tree_map(scaled, grads), xp.asarray(norm)  # NumPy makes numbers of arrays without axes
