"""Steps of training: AdamW, from parameters and state to the next, and clipping of gradients."""

from __future__ import annotations

from typing import NamedTuple

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_integer,
    check_number,
    compute_dtype,
)
from topk_np.training.trees import Tree, flatten, tree_map


class AdamWState(NamedTuple):
    """The state of AdamW between steps."""

    step: int
    """The number of steps taken."""
    mean: Tree
    """The running mean of the gradients, float32 for half precision."""
    square: Tree
    """The running mean of their squares, float32 for half precision."""


def adamw_init(params: Tree, /) -> AdamWState:
    """
    The state of AdamW before the first step.

    Parameters
    ----------
    params : nested dict of arrays
        The parameters that are to be trained, floating arrays.

    Returns
    -------
    AdamWState
        Zeros: twice the memory of the parameters, four times for half precision.

    Raises
    ------
    TypeError
        If a leaf is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import adamw_init
    >>> adamw_init({"weight": np.ones(2)})
    AdamWState(step=0, mean={'weight': array([0., 0.])}, square={'weight': array([0., 0.])})
    """

    def zeros(array: Array) -> Array:
        xp = array_namespace(array)
        return xp.zeros_like(array, dtype=compute_dtype(xp, array))

    return AdamWState(0, tree_map(zeros, params), tree_map(zeros, params))


def adamw(
    params: Tree,
    grads: Tree,
    state: AdamWState,
    /,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    decays: Tree | None = None,
) -> tuple[Tree, AdamWState]:
    """
    One step of AdamW: Adam with bias correction, and weight decay apart from the gradient.

    Parameters
    ----------
    params : nested dict of arrays
        The parameters; half precision is computed in float32 and rounded once.
    grads : nested dict of arrays
        Gradients of the loss, with the names and shapes of `params`.
    state : AdamWState
        From `adamw_init`, then from the step before.
    learning_rate : float
        Of this step, such as a schedule gives for ``state.step``.
    beta1, beta2 : float
        How much of the means of the gradients and of their squares stays, at least 0 and below 1.
    epsilon : float
        Added to the root of the mean square.
    weight_decay : float
        Each step takes ``learning_rate * weight_decay`` of a parameter off it.
    decays : nested dict of bool, optional
        Which parameters decay, with the names of `params`; by default all.

    Returns
    -------
    params : nested dict of arrays
        New arrays; those given are not written to.
    state : AdamWState
        For the next step.

    Raises
    ------
    TypeError
        If `state` is not an `AdamWState`, or a setting is not a number.
    ValueError
        If the trees differ, a gradient has another shape than its parameter, or a setting is out
        of its range.

    Notes
    -----
    Loshchilov and Hutter 2019, algorithm 2, arXiv:1711.05101; Kingma and Ba 2015,
    arXiv:1412.6980. ``decays=tree_map(lambda array: array.ndim > 1, params)`` leaves out biases
    and the scales of norms, as is usual.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import adamw, adamw_init
    >>> params = {"weight": np.array([1.0, -2.0])}
    >>> state = adamw_init(params)
    >>> for _ in range(2):
    ...     grads = {"weight": params["weight"]}  # of half the sum of squares
    ...     params, state = adamw(params, grads, state, learning_rate=0.1, weight_decay=0)
    >>> params["weight"].round(3), state.step
    (array([ 0.8, -1.8]), 2)
    """
    if not isinstance(state, AdamWState):
        raise TypeError(f"state must be an AdamWState, got {type(state).__name__}")
    for name, number in (
        ("learning_rate", learning_rate),
        ("weight_decay", weight_decay),
        ("epsilon", epsilon),
    ):
        if check_number(name, number) < 0:
            raise ValueError(f"{name} must be at least 0, got {number}")
    for name, number in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= check_number(name, number) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {number}")
    step = check_integer("state.step", state.step, least=0) + 1
    # NumPy makes numbers of arrays without axes, which asarray undoes.
    # What is wrong with means that began at zero: the parts of them that are still that zero.
    lacking1, lacking2 = 1 - beta1**step, 1 - beta2**step

    def averaged(mean: Array, grad: Array) -> Array:
        xp = array_namespace(mean, grad)
        if mean.shape != grad.shape:
            raise ValueError(
                f"gradients must have the shapes of their parameters, {tuple(mean.shape)}, "
                f"got {tuple(grad.shape)}"
            )
        return xp.asarray(beta1 * mean + (1 - beta1) * cast(xp, grad, mean.dtype))

    def averaged_square(square: Array, grad: Array) -> Array:
        xp = array_namespace(square, grad)
        wide = cast(xp, grad, square.dtype)
        return xp.asarray(beta2 * square + (1 - beta2) * wide * wide)

    def stepped(param: Array, mean: Array, square: Array, decays: bool) -> Array:
        xp = array_namespace(param)
        old = cast(xp, param, mean.dtype)
        update = mean / lacking1 / (xp.sqrt(square / lacking2) + epsilon)
        if decays:
            update = update + weight_decay * old
        return cast(xp, xp.asarray(old - learning_rate * update), param.dtype)

    mean = tree_map(averaged, state.mean, grads)
    square = tree_map(averaged_square, state.square, grads)
    if decays is None:
        decays = tree_map(lambda _: True, params)
    return tree_map(stepped, params, mean, square, decays), AdamWState(step, mean, square)


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
