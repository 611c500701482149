"""
Positions of tokens, the angles that they turn features by, and the rules that stretch positions.

Shapes: Q tokens, W features of a head, in W/2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from array_api_compat import device

from topk_np._namespace import Array, array_namespace, cast, cumulative_sum
from topk_np.layers.rope import Rope, Rotation
from topk_np.models.family import Fields, check
from topk_np.models.model import check_mask


class Scaling(Protocol):
    """A rule by which rotary positions are stretched."""

    def frequencies(self, base: float, width: int, length: int) -> tuple[np.ndarray, float]:
        """
        Radians a position for each pair, float64 (W/2,), and a factor of cosine and sine.

        Parameters
        ----------
        base : float
            Base of the wavelengths.
        width : int
            Features W of a head.
        length : int
            One more than the largest position of the call.
        """
        ...

    def reach(self, context: int) -> int:
        """Return the longest sequence, from the one that the config says."""
        ...


def positions_of(tokens: Array, first: int, mask: Array | None, positions: Array | None) -> Array:
    """Positions (Q,) or (..., Q) of `tokens`, before which there are `first`."""
    xp, length = array_namespace(tokens), tokens.shape[-1]
    if mask is not None:
        if first and mask.shape[-1] != first + length:
            raise ValueError(
                f"mask must have {first + length} positions, those of the caches and the tokens, "
                f"got {mask.shape[-1]}"
            )
        check_mask("mask", mask[..., first:], tokens)
    if positions is not None:
        if not xp.isdtype(positions.dtype, "integral") or positions.shape[-1:] != (length,):
            raise ValueError(
                f"positions must be integers for each of {length} tokens, "
                f"got shape {tuple(positions.shape)} and dtype {positions.dtype}"
            )
        return positions
    if mask is None:
        return xp.arange(first, first + length, device=device(tokens))
    counted = cumulative_sum(xp, xp.astype(mask, xp.int64))[..., first:] - 1
    return xp.where(counted < 0, xp.zeros_like(counted), counted)


def frequencies(base: float, width: int) -> np.ndarray:
    """Radians a position for each pair without scaling: ``base ** (-2 i / W)``, (W/2,)."""
    half = width // 2
    return base ** (-np.arange(half, dtype=np.float64) / half)


@dataclass(frozen=True)
class Linear:
    """Position interpolation, a division by a factor: Chen et al. 2023, arXiv:2306.15595."""

    factor: float

    def frequencies(self, base: float, width: int, length: int) -> tuple[np.ndarray, float]:
        """As `Scaling` says."""
        return frequencies(base, width) / self.factor, 1.0

    def reach(self, context: int) -> int:
        """As `Scaling` says."""
        return int(context * self.factor)


@dataclass(frozen=True)
class Factors:
    """Frequencies divided by a factor each, as GGUF files have them."""

    factors: tuple[float, ...]

    def frequencies(self, base: float, width: int, length: int) -> tuple[np.ndarray, float]:
        """As `Scaling` says."""
        return frequencies(base, width) / np.asarray(self.factors), 1.0

    def reach(self, context: int) -> int:
        """As `Scaling` says."""
        return context


@dataclass(frozen=True)
class Dynamic:
    """A base that grows with the sequence once it is longer than `context` ("dynamic NTK")."""

    factor: float
    context: int

    def frequencies(self, base: float, width: int, length: int) -> tuple[np.ndarray, float]:
        """As `Scaling` says."""
        length = max(length, self.context)
        growth = self.factor * length / self.context - (self.factor - 1)
        return frequencies(base * growth ** (width / (width - 2)), width), 1.0

    def reach(self, context: int) -> int:
        """As `Scaling` says."""
        return int(context * self.factor)


@dataclass(frozen=True)
class Llama3:
    """Long wavelengths stretched, short ones kept, those between blended, as in Llama 3.1."""

    factor: float
    low: float
    high: float
    original: int
    """The context of pretraining. Waves are long beyond ``original / low``, and short below
    ``original / high``."""

    def frequencies(self, base: float, width: int, length: int) -> tuple[np.ndarray, float]:
        """As `Scaling` says."""
        plain = frequencies(base, width)
        turns = self.original * plain / (2 * np.pi)  # within the context of pretraining
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return plain * (kept + (1 - kept) / self.factor), 1.0

    def reach(self, context: int) -> int:
        """As `Scaling` says."""
        return context


@dataclass(frozen=True)
class Yarn:
    """
    YaRN: fast pairs kept, slow ones stretched, and both queries and keys longer.

    Peng et al. 2023, section 3, arXiv:2309.00071.
    """

    factor: float
    original: int
    """The context of pretraining."""
    fast: float = 32.0
    """Pairs that turn at least this often within `original` are kept."""
    slow: float = 1.0
    """Pairs that turn at most this often are stretched by `factor`."""
    attention: float = 1.0
    """Factor of cosine and sine."""
    truncate: bool = True
    """Round the numbers of the first and the last pair that are blended, outwards."""

    def frequencies(self, base: float, width: int, length: int) -> tuple[np.ndarray, float]:
        """As `Scaling` says."""
        first, last = (self._pair(turns, base, width) for turns in (self.fast, self.slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        span = last - first if last != first else 0.001
        stretched = np.clip((np.arange(width // 2) - first) / span, 0, 1)
        plain = frequencies(base, width)
        return plain * (1 - stretched) + plain / self.factor * stretched, self.attention

    def reach(self, context: int) -> int:
        """As `Scaling` says."""
        return max(context, int(self.original * self.factor))

    def _pair(self, turns: float, base: float, width: int) -> float:
        """The number of the pair that turns so often within `original`."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(base))


def rotation_of(
    positions: Array, rope: Rope, scaling: Scaling | None, width: int, dtype: Any
) -> Rotation:
    """The angles of positions (Q,), or (..., Q) with axes for the groups and their heads."""
    xp = array_namespace(positions)
    steps, size = frequencies(rope.base, width), 1.0
    if scaling is not None:
        length = int(xp.max(positions)) + 1
        steps, size = scaling.frequencies(rope.base, width, length)
    if positions.ndim > 1:
        positions = positions[..., None, None, :]
    steps = xp.asarray(steps, device=device(positions))
    angles = xp.astype(positions, xp.float64)[..., None] * steps
    cosine, sine = (cast(xp, size * part, dtype) for part in (xp.cos(angles), xp.sin(angles)))
    return Rotation(cosine, sine, rope.layout)


def read_rope(fields: Fields, /, *, base: float) -> tuple[float, Scaling | None]:
    """
    Read the base of the rotary positions from a config, and the rule by which they are stretched.

    Parameters
    ----------
    fields : Fields
        Of the config. The rule is in ``rope_scaling`` (older configs) or ``rope_parameters``.
    base : float
        The default.

    Raises
    ------
    ValueError
        If the rule is not known, or has a field that is not known.
    """
    base = fields.positive("rope_theta", base)
    check("partial_rotary_factor", fields.get("partial_rotary_factor", 1), None, 1)
    old, rope = fields.table("rope_scaling"), fields.table("rope_parameters")
    if old and rope and old.raw != rope.raw:
        raise ValueError(
            f"rope_scaling and rope_parameters must not differ, got {old.raw} and {rope.raw}"
        )
    rope = old or rope
    if any(isinstance(value, dict) for value in rope.raw.values()):
        raise ValueError(
            f"{rope.source} must be the same in all layers for this reader, got {rope.raw}"
        )
    kind = rope.get("rope_type") or rope.get("type") or "default"
    check("rope_type", kind, *RULES)
    check("type", rope.get("type") or kind, kind)
    check("partial_rotary_factor", rope.get("partial_rotary_factor", 1), None, 1)
    base = rope.positive("rope_theta", base)
    if base <= 1:
        raise ValueError(f"rope_theta must be more than 1, got {base}")
    scaling = RULES[kind](rope, fields)
    rope.refuse_unread(HARMLESS)
    return base, scaling


def _original(rope: Fields, fields: Fields) -> int:
    """The context of pretraining, which some configs have among all fields."""
    name, given = "original_max_position_embeddings", "max_position_embeddings"
    inner = rope.number(name, fields.number(given))
    return fields.number(name, inner)


def _factor(rope: Fields) -> float:
    factor = rope.positive("factor")
    if factor < 1:
        raise ValueError(f"factor of {rope.source} must be at least 1, got {factor}")
    return factor


def _llama3(rope: Fields, fields: Fields) -> Scaling:
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise ValueError(f"low_freq_factor must be less than high_freq_factor, {high}, got {low}")
    return Llama3(_factor(rope), low, high, _original(rope, fields))


def _yarn(rope: Fields, fields: Fields) -> Scaling:
    original = _original(rope, fields)
    if rope.get("factor") is None:
        factor = fields.number("max_position_embeddings") / original
    else:
        factor = _factor(rope)
    scale, scale_all = (rope.get(name) for name in ("mscale", "mscale_all_dim"))
    attention = _magnitude(factor)
    if scale and scale_all:
        attention = _magnitude(factor, rope.positive("mscale")) / _magnitude(
            factor, rope.positive("mscale_all_dim")
        )
    return Yarn(
        factor,
        original,
        fast=rope.positive("beta_fast", 32),
        slow=rope.positive("beta_slow", 1),
        attention=rope.positive("attention_factor", attention),
        truncate=rope.flag("truncate", True),
    )


def _magnitude(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _dynamic(rope: Fields, fields: Fields) -> Scaling:
    return Dynamic(_factor(rope), fields.number("max_position_embeddings"))


RULES: Mapping[str, Callable[[Fields, Fields], Scaling | None]] = {
    "default": lambda rope, fields: None,
    "linear": lambda rope, fields: Linear(_factor(rope)),
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""Readers of the rules by ``rope_type``, each given the fields of the rope and of the config."""

HARMLESS = {"finetuned": "says that the model was trained with the rule"}
