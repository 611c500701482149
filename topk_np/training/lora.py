"""LoRA: a matrix that is trained through a low-rank update of it alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, cast, check_integer, compute_dtype


class LoRAGrads(NamedTuple):
    """Gradients of `lora`, each with the shape and dtype of its input."""

    weight: Array
    a: Array
    b: Array


@dataclass(frozen=True, eq=False)
class LoRAResiduals:
    """Residuals for `lora_bwd`: the factors."""

    a: Array = field(repr=False)
    b: Array = field(repr=False)
    scale: float

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return 0


def lora_init(weight: Array, rng: np.random.Generator, /, *, rank: int) -> tuple[Array, Array]:
    """
    Factors of the update of a matrix that is zero at first.

    Parameters
    ----------
    weight : array (F, E)
        The matrix.
    rng : numpy.random.Generator
        The generator that `a` is drawn from.
    rank : int
        Rows of `a` and columns of `b`: the most that the update's rank can be.

    Returns
    -------
    a : array (rank, E)
        Normal, of variance 1/E, in the library and on the device of `weight`; float32 for half
        precision, whose steps would be too coarse.
    b : array (F, rank)
        Zero.

    Raises
    ------
    TypeError
        If `rank` is not an integer.
    ValueError
        If it is below 1, or `weight` is not a matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import lora_init
    >>> a, b = lora_init(np.ones((6, 4)), np.random.default_rng(0), rank=2)
    >>> a.shape, b.shape, float(abs(b).max())
    ((2, 4), (6, 2), 0.0)
    """
    check_integer("rank", rank, least=1)
    if weight.ndim != 2:
        raise ValueError(f"weight must have shape (F, E), got {tuple(weight.shape)}")
    xp = array_namespace(weight)
    like = {"dtype": compute_dtype(xp, weight), "device": device(weight)}
    rows, width = weight.shape
    drawn = rng.standard_normal((rank, width)) / np.sqrt(width)
    return xp.asarray(drawn, **like), xp.zeros((rows, rank), **like)


def lora(weight: Array, a: Array, b: Array, /, *, scale: float) -> Array:
    """
    The matrix with its update merged in: ``weight + scale b a``.

    Parameters
    ----------
    weight : array (F, E)
        float16, bfloat16, float32 or float64; half precision is computed in float32.
    a : array (rank, E)
        The second factor.
    b : array (F, rank)
        The first.
    scale : float
        alpha / rank in the paper.

    Returns
    -------
    array (F, E)
        In the dtype, library and device of `weight`.

    Raises
    ------
    ValueError
        If the shapes of the factors do not fit.

    See Also
    --------
    lora_init : factors to begin with.

    Notes
    -----
    Hu et al. 2021, section 4.1, arXiv:2106.09685. A layer need not know that its weight is made so:
    ``x weightᵀ + scale (x aᵀ) bᵀ`` is ``x (weight + scale b a)ᵀ``.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.training import lora
    >>> lora(np.eye(2), np.array([[1.0, 2.0]]), np.array([[1.0], [0.0]]), scale=0.5)
    array([[1.5, 1. ],
           [0. , 1. ]])
    """
    return lora_fwd(weight, a, b, scale=scale)[0]


def lora_fwd(weight: Array, a: Array, b: Array, /, *, scale: float) -> tuple[Array, LoRAResiduals]:
    """
    `lora`, and what its backward pass needs.

    Parameters and errors are those of `lora`.

    Returns
    -------
    out : array (F, E)
        What `lora` returns.
    residuals : LoRAResiduals
        The factors by reference.
    """
    shapes = (a.shape[0], weight.shape[1]), (weight.shape[0], a.shape[0])
    if (tuple(a.shape), tuple(b.shape)) != shapes:
        raise ValueError(
            f"a and b must have shapes (rank, {weight.shape[1]}) and ({weight.shape[0]}, rank), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    xp = array_namespace(weight, a, b)
    # 1 out = weight + scale b a
    out = (scale * b) @ a
    out += cast(xp, weight, a.dtype)
    return cast(xp, out, weight.dtype), LoRAResiduals(a, b, scale)


def lora_bwd(residuals: LoRAResiduals, dout: Array, /) -> LoRAGrads:
    """
    Gradients of `lora`.

    Parameters
    ----------
    residuals : LoRAResiduals
        From `lora_fwd`.
    dout : array (F, E)
        Gradient of the loss with respect to the merged matrix, as a layer gives it.

    Returns
    -------
    LoRAGrads
        That of `weight` is `dout` itself; those of the factors have their shapes.
    """
    a, b, scale = residuals.a, residuals.b, residuals.scale
    xp = array_namespace(dout)
    wide = cast(xp, dout, a.dtype)
    # 1
    da = scale * (xp.matrix_transpose(b) @ wide)
    db = scale * (wide @ xp.matrix_transpose(a))
    return LoRAGrads(dout, da, db)
