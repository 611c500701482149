"""
Rotary position embedding: feature pairs turned by angles that grow with the position.

A rotation keeps lengths, and the rotations at two positions differ only by the distance between
them, so scores depend on relative positions only. Su et al., *RoFormer: Enhanced Transformer with
Rotary Position Embedding*, 2021, section 3.2, arXiv:2104.09864.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import device

from topk_np._namespace import (
    Array,
    array_namespace,
    cast,
    check_broadcasts,
    check_choice,
    check_floats,
    check_integer,
    check_ndim,
    check_number,
    compute_dtype,
    plain,
)
from topk_np.layers.linear import check_integers

RopeLayout = Literal["half", "interleaved"]


@dataclass(frozen=True)
class Rope:
    """
    Settings of the rotary embedding: how fast positions turn which features.

    Attributes
    ----------
    base : float
        Base of the wavelengths: from one position to the next pair i turns by
        ``base ** (-2 i / width)``.
    layout : {"half", "interleaved"}
        The two features of pair i: i and i + width / 2 (Llama, GPT-NeoX), or 2 i and 2 i + 1
        (RoFormer, GPT-J).
    width : int, optional
        Number of features to turn, even and at least 2; the others stay as they are. By default
        all are turned.
    """

    base: float = 10_000.0
    layout: RopeLayout = "half"
    width: int | None = None

    def __post_init__(self) -> None:
        """Check the attributes."""
        if check_number("base", self.base) <= 0:
            raise ValueError(f"base must be positive, got {self.base}")
        check_choice("layout", self.layout, ("half", "interleaved"))
        if self.width is not None and check_integer("width", self.width, least=2) % 2:
            raise ValueError(f"width must be even, got {self.width}")


@dataclass(frozen=True, eq=False)
class Rotation:
    """The angles of some positions as cosine and sine (..., Q, width / 2), and the layout."""

    cosine: Array
    sine: Array
    layout: RopeLayout

    @classmethod
    def at(cls, positions: Array, rope: Rope, width: int, dtype: Any) -> Rotation:
        """The angles of integer positions (..., Q), computed in float64 and rounded to `dtype`."""
        xp = array_namespace(positions)
        half = rope_width(rope, width) // 2
        pair = xp.arange(half, dtype=xp.float64, device=device(positions))
        angles = xp.astype(positions, xp.float64)[..., None] * rope.base ** (-pair / half)
        return cls(cast(xp, xp.cos(angles), dtype), cast(xp, xp.sin(angles), dtype), rope.layout)

    def turn(self, x: Array) -> Array:
        """Turn the pairs of `x` (..., Q, W)."""
        return self._turn(x, self.sine)

    def turn_back(self, dout: Array) -> Array:
        """Turn the pairs back: the transpose of `turn`, and its inverse."""
        return self._turn(dout, -self.sine)

    def _turn(self, x: Array, sine: Array) -> Array:
        xp = array_namespace(x, sine)
        half = sine.shape[-1]
        pairs, rest = cast(xp, x[..., : 2 * half], sine.dtype), x[..., 2 * half :]
        if self.layout == "half":
            first, second = pairs[..., :half], pairs[..., half:]
        else:
            first, second = pairs[..., 0::2], pairs[..., 1::2]
        turned = first * self.cosine - second * sine, second * self.cosine + first * sine
        if self.layout == "half":
            joined = xp.concat(turned, axis=-1)
        else:
            joined = xp.reshape(xp.stack(turned, axis=-1), pairs.shape)
        joined = cast(xp, joined, x.dtype)
        return xp.concat([joined, rest], axis=-1) if rest.shape[-1] else joined


def rotary_embedding(x: Array, rope: Rope, /, *, positions: int | Array = 0) -> Array:
    """
    Turn the feature pairs of each row by the angles of its position.

    Parameters
    ----------
    x : array (..., Q, W)
        Queries or keys, in float16, bfloat16, float32 or float64.
    rope : Rope
        Base, layout and width.
    positions : int or int array (..., Q), default 0
        Position of the first row, or one a row; leading axes broadcast to those of `x`.

    Returns
    -------
    array (..., Q, W)
        In the dtype, library and device of `x`.

    Raises
    ------
    TypeError
        If `x` is not a floating array, `rope` not a `Rope`, or `positions` not integers.
    ValueError
        If `positions` do not broadcast to the rows, or the width to turn is odd, 0 or more than W.

    Notes
    -----
    Angles are computed in float64. Time and memory are O(Q W).

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import Rope, rotary_embedding
    >>> rows = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> rotary_embedding(rows, Rope(), positions=1).round(3)
    array([[ 0.54 ,  0.841],
           [-0.416,  0.909]])
    """
    return _rotation_of("x", x, rope, positions).turn(plain(x))


def rotary_embedding_bwd(dout: Array, rope: Rope, /, *, positions: int | Array = 0) -> Array:
    """
    Gradient of `rotary_embedding`: the rotation by the opposite angles, which is its transpose.

    Parameters
    ----------
    dout : array (..., Q, W)
        Gradient of the loss with respect to the output.
    rope : Rope
        As in the forward pass.
    positions : int or int array (..., Q), default 0
        As in the forward pass.

    Returns
    -------
    array (..., Q, W)
        Gradient of the loss with respect to `x`.

    Raises
    ------
    TypeError, ValueError
        As `rotary_embedding`.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np import Rope, rotary_embedding, rotary_embedding_bwd
    >>> turned = rotary_embedding(np.ones((2, 4)), Rope(), positions=7)
    >>> rotary_embedding_bwd(turned, Rope(), positions=7).round(12)
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]])
    """
    return _rotation_of("dout", dout, rope, positions).turn_back(plain(dout))


def check_rope(rope: Rope, width: int) -> None:
    """Check that `rope` is a `Rope` that can turn rows of `width` features."""
    if not isinstance(rope, Rope):
        raise TypeError(f"rope must be a Rope, got {type(rope).__name__}")
    turned = rope_width(rope, width)
    if turned % 2 or not 2 <= turned <= width:
        raise ValueError(
            f"rope must turn an even number of the {width} features, at least 2, got {turned}"
        )


def rope_width(rope: Rope, width: int) -> int:
    """The number of features that are turned, of `width`."""
    return width if rope.width is None else rope.width


def check_positions(name: str, positions: Any, x: Array, rows: tuple[int, ...]) -> Array:
    """Check positions of the rows (..., Q) of `x`, or the first, and return them as an array."""
    xp = array_namespace(x)
    if getattr(positions, "shape", ()) == ():
        first = check_integer(name, positions)
        return xp.arange(first, first + rows[-1], dtype=xp.int64, device=device(x))
    check_integers(name, positions, "x", x)
    check_broadcasts(name, tuple(positions.shape), rows, "(..., Q)")
    return plain(positions)


def _rotation_of(name: str, x: Array, rope: Rope, positions: int | Array) -> Rotation:
    """Check the arguments of a rotary embedding, and return its angles."""
    xp = check_floats({name: x})
    check_ndim(name, x, 2, "(..., Q, W)")
    check_rope(rope, x.shape[-1])
    positions = check_positions("positions", positions, x, tuple(x.shape[:-1]))
    return Rotation.at(positions, rope, x.shape[-1], compute_dtype(xp, x))
