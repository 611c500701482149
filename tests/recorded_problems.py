"""
The problems of `tests.recorded`: every option of the four functions, drawn from a seed.

All numbers are made of the raw bits of PCG64, which are the same in every version of NumPy and on
every processor. A problem's shapes and options depend on its dtype and number; the numbers in its
arrays depend on the attempt as well, so that a draw can be replaced without losing what it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import topk_np

DTYPES = ("float16", "bfloat16", "float32", "float64")
FUNCTIONS = {"topk_attention": 90, "dense_attention": 50, "topk_ffn": 38, "dense_ffn": 22}
PROBLEMS = sum(FUNCTIONS.values())
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "identity", "softmax")
SIZES = ("small", "short", "small", "short", "middle", "small", "wide", "short", "small", "long")
FORCED = ("mask", "bias", "softcap", "dropout", "always_keep", "p", "return_lse", "mask", "bias")
FORCED_DENSE = ("mask", "bias", "softcap", "dropout", "return_lse", "bias")

REAL_ATTEMPTS = 40  # after which small integers are drawn, whatever was meant

Shape = tuple[int, ...]


class Draws:
    """Random numbers that no version of NumPy changes."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed))

    def raw(self, shape: Shape) -> np.ndarray:
        """Uniform uint64."""
        return np.asarray(self._bits.random_raw(int(np.prod(shape)))).reshape(shape)

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + int(self._bits.random_raw() % (high - low + 1))

    def chance(self, share: float) -> bool:
        """True in this share of all draws."""
        return bool(self.between(0, 999) < 1000 * share)

    def pick(self, *choices: Any) -> Any:
        """One of the choices."""
        return choices[self.between(0, len(choices) - 1)]

    def whole(self, shape: Shape, low: int, high: int) -> np.ndarray:
        """Integers from `low` to `high`, both included."""
        return (self.raw(shape) % (high - low + 1)).astype(np.int64) + low

    def real(self, shape: Shape) -> np.ndarray:
        """Sums of four uniform numbers: nearly normal, without any function that is rounded."""
        uniform = (self.raw((4, *shape)) >> 11).astype(np.float64) * 2.0**-52 - 1
        total: np.ndarray = uniform[0] + uniform[1] + (uniform[2] + uniform[3])
        return total


@dataclass(frozen=True)
class Problem:
    """A call: its function, inputs, options, and the gradients of what it returns."""

    function: str
    dtype: str
    number: int
    inputs: tuple[np.ndarray, ...]
    options: dict[str, Any]
    dout: Any
    whole: bool
    """True if all inputs are small integers, whose products are exact and often tie."""

    def __str__(self) -> str:
        shapes = " ".join(str(array.shape) for array in self.inputs)
        options = ", ".join(f"{name}={_shown(value)}" for name, value in self.options.items())
        return f"{self.dtype} problem {self.number}, {self.function} of {shapes}: {options}"


def function_of(number: int) -> str:
    """The function of the problem of this number."""
    return [name for name, count in FUNCTIONS.items() for _ in range(count)][number]


def make_problem(dtype: str, number: int, attempt: int) -> Problem:
    """The problem of this number, in one of its draws."""
    place, function = DTYPES.index(dtype), function_of(number)
    drawing = _Drawing(Draws(place, number), Draws(place, number, attempt), function, dtype, number)
    drawing.whole |= attempt >= REAL_ATTEMPTS
    return drawing.ffn() if function.endswith("ffn") else drawing.attention()


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in one of the four dtypes, by way of float32 where that is exact or near."""
    if dtype == "bfloat16":
        return array.astype(np.float32).astype(ml_dtypes.bfloat16)
    return array.astype(dtype)


class _Drawing:
    """One problem in the making."""

    def __init__(self, form: Draws, numbers: Draws, function: str, dtype: str, number: int) -> None:
        self.form, self.numbers, self.function = form, numbers, function
        self.dtype, self.number = dtype, number
        self.whole = form.chance(0.45)
        self.options: dict[str, Any] = {}
        self.size = SIZES[number % len(SIZES)]
        if self.size == "wide" and number // len(SIZES) % 2 and function.startswith("topk"):
            self.size = "vast"

    # Arrays

    def floats(self, shape: Shape, size: int = 2, middle: int = 0) -> np.ndarray:
        """Integers up to `size`, or numbers about half as large, in the problem's dtype."""
        if self.whole:
            values = self.numbers.whole(shape, -size, size).astype(np.float64)
        else:
            values = self.numbers.real(shape) * (size / 2)
        return as_dtype(values + middle, self.dtype)

    def laid(self, array: np.ndarray) -> np.ndarray:
        """The array in some layout in memory, most of them not contiguous; perhaps read-only."""
        layout = self.form.pick("plain", "plain", "heads", "gaps", "fortran", "reversed", "frozen")
        if layout == "heads" and array.ndim > 2:  # as split_heads makes it
            array = np.ascontiguousarray(np.swapaxes(array, -3, -2)).swapaxes(-3, -2)
        elif layout == "gaps":
            array = np.repeat(array, 2, axis=-1)[..., ::2]
        elif layout == "fortran":
            array = np.asfortranarray(array)
        elif layout == "reversed":
            array = np.ascontiguousarray(array[::-1])[::-1]
        elif layout == "frozen":
            array.setflags(write=False)
        return array

    def narrowed(self, lead: Shape, share: float = 0.5) -> Shape:
        """Leading axes that broadcast to `lead`: some of length 1, some left out."""
        axes = [1 if self.form.chance(share) else length for length in lead]
        return tuple(axes[self.form.between(0, len(axes)) if self.form.chance(share) else 0 :])

    # Attention

    def attention(self) -> Problem:
        form, options = self.form, self.options
        size = self.size
        lead, queries, keys, width, value_width = self.sizes(size)
        shared = form.chance(0.35)
        key_lead = self.narrowed(lead) if shared else lead
        value_lead = self.narrowed(lead) if shared and form.chance(0.4) else key_lead
        query_lead = self.narrowed(lead) if shared and form.chance(0.2) else lead
        batch = np.broadcast_shapes(query_lead, key_lead, value_lead)
        # Exponentials of large scores have large errors, as means of many numbers about 0 have.
        query = self.floats((*query_lead, queries, width), 1 if self.whole and keys > 40 else 2)
        key = self.floats((*key_lead, keys, width))
        value = self.floats((*value_lead, keys, value_width), 4, middle=int(keys > 40))

        top = self.function == "topk_attention"
        style = form.pick("plain", "positions", "one", "one", "some", "many")
        share = {"plain": 0.0, "positions": 0.0, "one": 0.0, "some": 0.25, "many": 0.55}[style]
        forced = (FORCED if top else FORCED_DENSE)[self.number % (9 if top else 6)]
        wanted = {name: form.chance(share) for name in (*FORCED, "scale")}
        wanted[forced] |= style in ("one", "some", "many")
        placed = {"plain": 0.0, "positions": 0.5, "one": 0.15, "some": 0.25, "many": 0.4}[style]
        self.positions(batch, queries, keys, placed)
        if wanted["mask"]:
            options["mask"] = self.mask(batch, queries, keys)
        if wanted["softcap"]:
            options["softcap"] = form.pick(4.0, 8.0, 30.0)
        if wanted["dropout"]:
            options["dropout"] = form.pick((0.25, 7), (0.5, 2**40 + 3), (0.1, 0), (0.75, 2**63))
        if wanted["return_lse"] or (style in ("plain", "positions") and form.chance(0.25)):
            options["return_lse"] = True
        if wanted["always_keep"]:
            options["always_keep"] = form.pick((1, 0), (0, 2), (2, 3), (4, 1), (1, 8))
        if wanted["bias"]:
            options["bias"] = self.bias(batch, queries, keys)
        inexact = (width & (width - 1) or width.bit_length() % 2 == 0) and keys > 40
        if wanted["scale"] or (self.whole and (inexact or {"bias", "softcap"} & set(options))):
            options["scale"] = form.pick(0.5, 0.25, 1.0, 0.125, -0.5, 0.25 if keys > 40 else 2.0)
            if not self.whole:  # scores of about one, whose exponentials are nearly exact
                factor = form.pick(1.0, -1.0, 0.3, 1.1, -0.7)
                options["scale"] = factor / 2 ** (width.bit_length() // 2)
        if top:
            most = self.keep_rule(keys)
            if wanted["p"]:
                options["p"] = form.pick(0.31, 0.47, 0.78, 0.93, 1)
                options["max_k"] = most if keys <= 40 else min(most, 24)
            else:
                options["k"] = most
        self.position_offset(batch, queries, keys)
        self.cut(size, queries)
        self.poison(key, value, batch, queries)
        dout: Any = self.laid(self.floats((*batch, queries, value_width)))
        if "return_lse" in options:
            computing = "float64" if self.dtype == "float64" else "float32"
            dout = dout, self.floats((*batch, queries)).astype(computing)
        return self.finished((self.laid(query), self.laid(key), self.laid(value)), dout)

    def sizes(self, size: str) -> tuple[Shape, int, int, int, int]:
        """Leading axes, Q, N, D and V."""
        form = self.form
        if size == "small":  # a few heads, as many axes as there may be
            lead = tuple(form.between(1, 3) for _ in range(form.between(0, 3)))
            queries, keys = form.between(1, 20), form.between(1, 24)
        elif size == "short":  # many heads of few tokens
            lead = form.pick((12,), (24,), (4, 8), (2, 3, 5), (40,), (8, 4), (32, 2))
            queries, keys = form.between(1, 40), form.between(1, 40)
        elif size == "middle":  # heads whose scores still fit a stack
            lead = form.pick((3,), (2, 3), (5,), (8,))
            queries, keys = form.between(40, 160), form.between(40, 260)
        elif size == "vast":  # keys that are ranked block by block, and gradients cut into ranges
            lead, queries, keys = (
                form.pick((), (2,)),
                form.between(12, 60),
                form.between(4200, 5200),
            )
        elif size == "wide":  # few queries of many keys, as in decoding
            lead = form.pick((), (2,), (3,), (1, 2), (6,))
            queries, keys = form.between(1, 24), form.between(300, 1100)
        else:
            lead = form.pick((), (2,), (1, 2), (3,))
            queries, keys = form.between(150, 420), form.between(300, 1100)
        if size in ("small", "short", "middle") and form.chance(0.6):
            queries = keys
        widths: Shape = (1, 2, 3, 4, 5, 8, 16) if size == "small" else (4, 8, 8, 16, 16, 32)
        if self.function == "dense_attention" and keys > 300:  # where sums are longest
            keys, widths = 300 + keys // 5, (4, 8, 16)
        if size == "vast":
            widths = (4, 8, 16)
        width = form.pick(*widths)
        return lead, queries, keys, width, width if form.chance(0.5) else form.pick(*widths)

    def keep_rule(self, keys: int) -> int:
        """The number of keys to keep: one, a few, a usual number, all, or more than all."""
        few = self.form.between(1, 5)
        if keys > 300:
            return int(self.form.pick(1, few, 8, 16, 32, 64, 64, min(keys // 4, 100)))
        half = max(1, keys // 2)
        return int(self.form.pick(1, few, few, 8, 16, 16, 32, 64, half, keys, keys + 3))

    def positions(self, batch: Shape, queries: int, keys: int, share: float) -> None:
        """Options by position."""
        form, options = self.form, self.options
        if form.chance(share):
            options["is_causal"] = True
        if form.chance(share * 0.7):
            left, right = form.between(0, keys // 2), form.between(0, keys // 2)
            options["window"] = form.pick((left, right), (left, None), (None, right), (left, 0))
        if form.chance(share * 0.7):
            options["query_lengths"] = self.lead_integers(batch, 0, queries)
        if form.chance(share * 0.9):
            options["key_lengths"] = self.lead_integers(batch, 0, keys)

    def position_offset(self, batch: Shape, queries: int, keys: int) -> None:
        """The offset, where an option needs one, and sometimes where none does."""
        options = self.options
        by_position = {"is_causal", "window", "always_keep"} & set(options) or (
            callable(options.get("mask"))
            or callable(options.get("bias"))
            or isinstance(options.get("bias"), (topk_np.ALiBi, topk_np.T5Bias))
        )
        needed = by_position and queries != keys
        if needed or self.form.chance(0.2):
            low = min(0, keys - queries) - 1
            options["query_offset"] = self.lead_integers(batch, low, max(keys - queries, 0) + 2)

    def lead_integers(self, batch: Shape, low: int, high: int) -> Any:
        """One integer for all heads, or an array that broadcasts to the leading axes."""
        if self.form.chance(0.3):
            return self.form.between(low + (high - low) // 2, high)
        shape = self.narrowed(batch, 0.3)
        return self.numbers.whole(shape, low, high) if shape else self.numbers.between(low, high)

    def mask(self, batch: Shape, queries: int, keys: int) -> Any:
        """A mask array of some shape, or a function of positions."""
        form = self.form
        if form.chance(0.25):
            a, b, m = form.between(1, 5), form.between(1, 5), form.between(2, 7)
            return lambda i, j: (a * i + b * j) % m != 0
        shape = (queries if form.chance(0.7) else 1, keys if form.chance(0.9) else 1)
        shape = form.pick((keys,), shape, (*self.narrowed(batch), *shape), (*batch, *shape))
        return self.laid(self.numbers.whole(shape, 0, 3) > 0)

    def bias(self, batch: Shape, queries: int, keys: int) -> Any:
        """An array of some shape, ALiBi, a table of T5's, or a function of positions."""
        form = self.form
        kind = form.pick("array", "array", "array", "ALiBi", "T5Bias", "T5Bias", "function")
        lead = self.narrowed(batch)
        if kind == "ALiBi":
            return topk_np.ALiBi(np.asarray(self.numbers.whole(lead, 0, 4) / 16))
        if kind == "T5Bias":
            both, half = form.chance(0.5), form.between(4, 8)
            table = self.floats(((1 + both) * half, *lead))
            return topk_np.T5Bias(self.laid(table), bidirectional=both, max_distance=32)
        if kind == "function":
            m = form.between(2, 9)
            return form.pick(lambda i, j: (i + 2 * j) % m, lambda i, j: (i - j) % m * -0.25)
        # A term that is the same for all keys has a gradient only through the log-sum-exp.
        thin = self.options.get("return_lse", False) and form.chance(0.3)
        shape = (*lead, queries if form.chance(0.7) else 1, 1 if thin else keys)
        bias = self.floats((keys,) if not thin and form.chance(0.15) else shape)
        if not thin and form.chance(0.2):
            bias[self.numbers.whole(bias.shape, 0, 5) == 0] = -np.inf
        return self.laid(bias)

    def cut(self, size: str, queries: int) -> None:
        """Options about how the work is cut."""
        form = self.form
        if form.chance(0.2):
            self.options["chunk_size"] = form.between(1 + queries // 5, queries)
        if size == "vast" or form.chance(0.25):
            least = 19 if size in ("small", "short") else 22
            most = least if size == "vast" else least + 2
            self.options["memory_budget"] = 2 ** form.between(least, most)

    def poison(self, key: np.ndarray, value: np.ndarray, batch: Shape, queries: int) -> None:
        """NaN in keys and values that no query of any head sees."""
        lengths = self.options.get("key_lengths")
        if lengths is None or not self.form.chance(0.4):
            return
        hidden = np.arange(key.shape[-2]) >= np.max(lengths)
        key[..., hidden, :], value[..., hidden, :] = np.nan, np.nan

    # The feed-forward layer

    def ffn(self) -> Problem:
        form, options = self.form, self.options
        size = self.size
        axes = self.number % 4
        lead = tuple(form.between(1, 6) for _ in range(axes))
        units, width = form.between(2, 40), form.between(1, 12)
        if size == "vast":
            units, width, lead = form.between(4200, 5200), 4, (*lead[:1], form.between(12, 40))
        elif size in ("wide", "long"):
            units, width = form.between(300, 700), form.pick(8, 16, 24)
            lead = (form.between(100, 300), *lead[1:2]) if size == "long" and axes else lead
        elif size == "middle":
            units, lead = form.between(60, 256), (*lead[:1], form.between(40, 130))
        value_width = width if form.chance(0.5) else form.between(1, 12)
        x, keys = self.floats((*lead, width)), self.floats((units, width))
        values = self.floats((units, value_width), 4)
        options["activation"] = ACTIVATIONS[self.number // 2 % len(ACTIVATIONS)]
        if not self.whole or options["activation"] not in ("relu", "identity"):
            # Scores of about one, where the activations differ.
            x = as_dtype(x.astype(np.float64) * 2.0 ** -((width + 1).bit_length() // 2), self.dtype)
        if form.chance(0.45):
            options["gate"] = self.laid(self.floats((units, width)))
        if form.chance(0.45):
            options["key_bias"] = self.laid(self.floats((units,)))
        if form.chance(0.45):
            options["value_bias"] = self.floats((value_width,), 4)
        if self.function == "topk_ffn":
            options["k"] = self.keep_rule(units)
            options["select"] = form.pick("score", "activation")
        self.cut(size, int(np.prod(lead)))
        dout = self.laid(self.floats((*lead, value_width)))
        return self.finished((self.laid(x), self.laid(keys), self.laid(values)), dout)

    def finished(self, inputs: tuple[np.ndarray, ...], dout: Any) -> Problem:
        return Problem(
            self.function, self.dtype, self.number, inputs, self.options, dout, self.whole
        )


def _shown(value: Any) -> str:
    """An option in few words."""
    if isinstance(value, np.ndarray):
        return f"array {value.shape}"
    if isinstance(value, (topk_np.ALiBi, topk_np.T5Bias)):
        return type(value).__name__
    return "function" if callable(value) else repr(value)
