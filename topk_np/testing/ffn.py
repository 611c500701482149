"""`check_ffn`: a battery of properties for any implementation of a feed-forward layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from topk_np.testing.ffn_definition import FFNProblem, solve_ffn
from topk_np.testing.law import Law, put_to_the_test
from topk_np.testing.libraries import Library
from topk_np.testing.report import Report
from topk_np.testing.rows import rows
from topk_np.testing.subject import Implementation, Subject, calling, near

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "identity", "softmax")
OPTIONS = ("k", "activation", "key_bias", "value_bias", "gate", "select", "chunk_size")


@st.composite
def ffn_problems(
    draw: st.DrawFn,
    *,
    dtype: str = "float64",
    max_length: int = 8,
    min_length: int = 1,
    options: Collection[str] = OPTIONS,
    required: Collection[str] = (),
    normal: bool | None = None,
) -> FFNProblem:
    """Problems of a feed-forward layer; arguments as for `attention_problems`."""
    (tokens,), (units,) = (draw(rows((), min_length, max_length, sets=1)) for _ in range(2))
    (others,) = draw(rows((), 3, 3, sets=1))
    is_normal = draw(st.booleans()) if normal is None else normal
    lead = draw(st.integers(0, 2))
    width, out_width = draw(st.sampled_from((1, 4))), draw(st.integers(1, 3))
    count = len(units.drawn)
    x, keys, values, dout = (
        (some if not is_normal else type(some)(some.drawn, (), True)).numbers(field, size)
        for some, field, size in (
            (tokens, "vector", width),
            (units, "vector", width),
            (units, "value", out_width),
            (tokens, "value", out_width),
        )
    )
    if lead == 0 and len(x):
        x, dout = x[0], dout[0]
    elif lead == 2:
        x, dout = x[None], dout[None]
    strategies = {
        "k": st.integers(1, count + 1),
        "activation": st.sampled_from(ACTIVATIONS),
        "key_bias": st.just(units.numbers("bias", 1)[:, 0].astype(dtype)),
        "value_bias": st.just(others.numbers("value", out_width)[0].astype(dtype)),
        "gate": st.just(np.roll(keys, 1, axis=0).astype(dtype)),
        "select": st.sampled_from(["score", "activation"]),
        "chunk_size": st.integers(1, 4),
    }
    chosen = {
        name: draw(values_of)
        for name, values_of in strategies.items()
        if name in options and (name in required or name == "k" or draw(st.booleans()))
    }
    x, keys, values, dout = (array.astype(dtype) for array in (x, keys, values, dout))
    return FFNProblem(x, keys, values, dout, chosen)


@dataclass(frozen=True)
class FFN(Subject):
    """An implementation of a feed-forward layer."""

    KNOWN = OPTIONS

    def out_of(self, problem: FFNProblem) -> np.ndarray:
        """The output for a problem."""
        return self.out(problem.arrays, problem.options)

    def problems(
        self,
        *required: str,
        optional: tuple[str, ...] = (),
        least: int = 1,
        normal: bool | None = None,
    ) -> SearchStrategy[FFNProblem]:
        """Problems with some options, and others where it has them."""
        return ffn_problems(
            dtype=self.dtype,
            max_length=self.max_length if least else 1,
            min_length=least,
            options=[*required, *(o for o in ("k", *optional) if self.has(o))],
            required=required,
            normal=normal,
        )


def values(subject: FFN, problem: FFNProblem) -> None:
    """The output is relu(x keysᵀ) values, over the k best units if it names k."""
    _agrees(subject, problem)


def activation(subject: FFN, problem: FFNProblem) -> None:
    """Each activation is the function of its name."""
    _agrees(subject, problem)


def key_bias(subject: FFN, problem: FFNProblem) -> None:
    """The bias of a unit is added to its score."""
    _agrees(subject, problem)


def value_bias(subject: FFN, problem: FFNProblem) -> None:
    """The bias of the output is added once."""
    _agrees(subject, problem)


def gate(subject: FFN, problem: FFNProblem) -> None:
    """With a gate a unit is activation(x gateᵀ) times its linear score, ranked by the gate."""
    _agrees(subject, problem)


def all_kept(subject: FFN, problem: FFNProblem) -> None:
    """The output is that of the dense layer where k is the number of units or more."""
    _agrees(subject, problem.given(k=len(problem.keys)))
    _agrees(subject, problem.given(k=len(problem.keys) + 3))


def ties(subject: FFN, problem: FFNProblem) -> None:
    """Exactly k units are kept, and among equal scores those of the lower index."""
    wanted = solve_ffn(problem)
    out = subject.out_of(problem)
    near("the output", out, wanted.out, problem.tolerance("out"))


def select(subject: FFN, problem: FFNProblem) -> None:
    """Units are ranked by their score, or by the size of their activation."""
    _agrees(subject, problem)


def together(subject: FFN, problem: FFNProblem) -> None:
    """All options combine."""
    _agrees(subject, problem)


def inputs_unchanged(subject: FFN, problem: FFNProblem) -> None:
    """The inputs are as they were afterwards."""
    inputs, keywords = subject.put(problem.arrays), subject.keywords(problem.options)
    with calling():
        subject.function(*inputs, **keywords)
    for name, array, before in zip(("x", "keys", "values"), inputs, problem.arrays, strict=True):
        if subject.take(name, array).tobytes() != before.tobytes():
            raise AssertionError(f"{name} was written to")


def kind(subject: FFN, problem: FFNProblem) -> None:
    """The output has the dtype of the inputs."""
    out = subject.out_of(problem)
    if out.dtype.name != subject.dtype:
        raise AssertionError(f"the output's dtype is {out.dtype}, expected {subject.dtype}")


def degenerate(subject: FFN, problem: FFNProblem) -> None:
    """No tokens give no rows; without units there is only the bias of the output."""
    _agrees(subject, problem)


def chunk_size(subject: FFN, problem: FFNProblem) -> None:
    """The chunk size changes nothing but rounding."""
    _agrees(subject, problem)


def gradients(subject: FFN, problem: FFNProblem) -> None:
    """Each gradient is the derivative; units that are not kept get none."""
    clear = solve_ffn(problem).clear[..., None]
    dout = np.where(clear, problem.dout, problem.dout.dtype.type(0))
    problem = FFNProblem(*problem.arrays, dout, problem.options)
    wanted = solve_ffn(problem).grads
    grads = subject.gradients(problem.arrays, problem.options, dout)
    named = dict(zip(("x", "keys", "values"), grads, strict=False))
    named |= {name: getattr(grads, name, None) for name in ("key_bias", "value_bias", "gate")}
    for name, grad in named.items():
        if grad is not None and name in wanted:
            found = subject.take(f"the gradient of {name}", grad)
            near(f"the gradient of {name}", found, wanted[name], problem.tolerance(name))


def gradients_together(subject: FFN, problem: FFNProblem) -> None:
    """So it is with all options."""
    gradients(subject, problem)


def _agrees(subject: FFN, problem: FFNProblem) -> None:
    wanted = solve_ffn(problem)
    out = subject.out_of(problem)
    near("the output", out, wanted.out, problem.tolerance("out"), wanted.clear[..., None])


LAWS: tuple[Law[FFN], ...] = (
    Law(values, lambda s: s.problems()),
    Law(activation, lambda s: s.problems("activation"), ("activation",)),
    Law(key_bias, lambda s: s.problems("key_bias"), ("key_bias",)),
    Law(value_bias, lambda s: s.problems("value_bias"), ("value_bias",)),
    Law(gate, lambda s: s.problems("gate"), ("gate",)),
    Law(all_kept, lambda s: s.problems("k"), ("k",)),
    Law(ties, lambda s: s.problems("k", normal=False), ("k",)),
    Law(select, lambda s: s.problems("select", optional=("activation",)), ("select",)),
    Law(together, lambda s: s.problems(optional=OPTIONS)),
    Law(kind, lambda s: s.problems()),
    Law(inputs_unchanged, lambda s: s.problems()),
    Law(degenerate, lambda s: s.problems(least=0), may_refuse=True),
    Law(chunk_size, lambda s: s.problems("chunk_size"), ("chunk_size",)),
    # Normal numbers: activations may have a kink at 0.
    Law(gradients, lambda s: s.problems(normal=True), differentiates=True),
    Law(
        gradients_together,
        lambda s: s.problems(optional=OPTIONS, normal=True),
        differentiates=True,
    ),
)


def check_ffn(
    implementation: Implementation,
    /,
    *,
    options: Collection[str] = (),
    fwd: Implementation | None = None,
    bwd: Implementation | None = None,
    library: str | Library = "numpy",
    dtype: str = "float64",
    max_length: int = 8,
    examples: int = 50,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> Report:
    """
    Put an implementation of a feed-forward layer to the test, property by property.

    Parameters
    ----------
    implementation : callable
        ``f(x, keys, values, **options) -> out``, shapes and options as in `topk_np.topk_ffn`; a
        ReLU layer where no activation is passed, dense where it has no option `k`.
    options, fwd, bwd, library, dtype, max_length, examples, seed, only
        As for `check_attention`; `max_length` is of tokens and units.

    Returns
    -------
    Report
        ``report.passed`` says whether no property failed; printed it says everything.

    Raises
    ------
    CannotCheck
        If the library is not installed or lacks the dtype, or the first, ordinary call raises.
    TypeError, ValueError
        If an argument is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.testing import check_ffn
    >>> def layer(x, keys, values, key_bias=0.0):
    ...     return np.maximum(x @ keys.T, 0) @ values  # a bias is forgotten
    >>> check_ffn(layer, only=["values", "key_bias", "gate"]).names("failed")
    ['key_bias']
    """
    subject = FFN.of(implementation, options, library, dtype, max_length, fwd, bwd)
    array = np.ones((2, 2), dtype)
    ordinary = FFNProblem(array, array, array, array, {"k": 1} if subject.has("k") else {})
    return put_to_the_test(
        subject, LAWS, ordinary, subject.out_of, only=only, examples=examples, seed=seed
    )
