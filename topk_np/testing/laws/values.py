"""Properties of the numbers that come out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from topk_np.testing.definition import solve
from topk_np.testing.law import Law
from topk_np.testing.laws.base import DEFINED, Attention, agrees
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.subject import near

PLACED = ("query_offset",)  # an option that those by position are drawn with


def values(subject: Attention, problem: AttentionProblem) -> None:
    """The output is softmax(query keyᵀ / sqrt(D)) value, over the k best keys if it names k."""
    agrees(subject, problem)


def scale(subject: Attention, problem: AttentionProblem) -> None:
    """A given scale replaces 1 / sqrt(D)."""
    agrees(subject, problem)


def softcap(subject: Attention, problem: AttentionProblem) -> None:
    """A scaled product x becomes softcap tanh(x / softcap)."""
    agrees(subject, problem)


def bias(subject: Attention, problem: AttentionProblem) -> None:
    """A bias is added to the scores, after scale and softcap."""
    agrees(subject, problem)


def bias_function(subject: Attention, problem: AttentionProblem) -> None:
    """A bias may be a function of the positions of queries and keys."""
    agrees(subject, problem)


def alibi(subject: Attention, problem: AttentionProblem) -> None:
    """An ALiBi takes slope |i - j| from the score of a query at i and a key at j."""
    agrees(subject, problem)


def t5_bias(subject: Attention, problem: AttentionProblem) -> None:
    """A T5Bias adds the value of its table for the range that the distance j - i is in."""
    agrees(subject, problem)


def extreme(subject: Attention, problem: AttentionProblem) -> None:
    """Scores of many thousands neither overflow nor give NaN."""
    agrees(subject, problem)


def poisoned(subject: Attention, problem: AttentionProblem) -> None:
    """A query with NaN or +inf among its scores gives NaN, the others what they gave without."""
    for poison in (np.nan, np.inf):
        query, key = problem.query.copy(), _above_zero(problem.key)
        query[..., 0, :] = poison
        clean = solve(replace(problem, key=key))
        out = subject.out_of(replace(problem, query=query, key=key))
        if out.shape == clean.out.shape and not np.isnan(out[..., 0, :]).all():
            raise AssertionError(f"the output of a query of {poison} is {out[..., 0, :]}, not NaN")
        others = clean.clear.copy()
        others[..., 0] = False
        tolerance = replace(problem, key=key).tolerance("out")
        near("the output of other queries", out, clean.out, tolerance, others[..., None])
        # Of a key all queries have such a score. They are above 0: a score of -inf is masked.
        query, key = _above_zero(problem.query), problem.key.copy()
        key[..., -1, :] = poison
        out = subject.out_of(replace(problem, query=query, key=key))
        nowhere = np.full(problem.dout.shape, np.nan)
        near(f"beside a key of {poison} the output", out, nowhere, 0.0)


def _above_zero(array: np.ndarray) -> np.ndarray:
    # An older NumPy makes float32 of bfloat16 and a number.
    above: np.ndarray = np.abs(array) + 1
    return above.astype(array.dtype)


def lse(subject: Attention, problem: AttentionProblem) -> None:
    """With return_lse a pair comes back: the output, and the log-sum-exp of the kept scores."""
    wanted = solve(problem)
    pair = subject.call(problem.arrays, {**problem.options, "return_lse": True})
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise AssertionError(f"no pair comes back but {type(pair).__name__}")
    out, found = (
        subject.take(name, a) for name, a in zip(("the output", "lse"), pair, strict=True)
    )
    rows = wanted.clear & wanted.keeping
    near("the output", out, wanted.out, problem.tolerance("out"), rows[..., None])
    near("lse", found, wanted.lse, problem.tolerance("lse"), rows)


def together(subject: Attention, problem: AttentionProblem) -> None:
    """All options combine."""
    agrees(subject, problem)


@st.composite
def long_problems(draw: st.DrawFn, subject: Attention) -> AttentionProblem:
    """Problems larger than the tiles of a kernel, which shrink to the shortest that fails."""
    lead = (1,) * (subject.leading_axes or 0)
    placed = subject.has("is_causal", "query_offset")
    queries, keys = (draw(st.integers(1, 300)) for _ in range(2))
    options: dict[str, object] = (
        {"k": draw(st.sampled_from([8, 64, 1]))} if subject.has("k") else {}
    )
    if subject.has("is_causal") and draw(st.booleans()):
        options["is_causal"] = True
        if placed:
            options["query_offset"] = draw(st.integers(0, keys))
        else:
            keys = queries
    normal = np.random.default_rng(draw(st.integers(0, 9))).standard_normal
    shapes = (queries, 16), (keys, 16), (keys, 4), (queries, 4)
    query, key, value, dout = (normal((*lead, *s)).astype(subject.dtype) for s in shapes)
    return AttentionProblem(query, key, value, dout, options)


def long(subject: Attention, problem: AttentionProblem) -> None:
    """All of this holds for hundreds of queries and keys, beyond the tiles of a kernel."""
    agrees(subject, problem)


LAWS = (
    Law(values, lambda s: s.problems()),
    Law(scale, lambda s: s.problems("scale"), ("scale",)),
    Law(softcap, lambda s: s.problems("softcap"), ("softcap",)),
    Law(bias, lambda s: s.problems("bias"), ("bias",)),
    Law(bias_function, lambda s: s.problems("bias_function", optional=PLACED), ("bias_function",)),
    Law(alibi, lambda s: s.problems("alibi", optional=PLACED), ("alibi",)),
    Law(t5_bias, lambda s: s.problems("t5_bias", optional=PLACED), ("t5_bias",)),
    Law(extreme, lambda s: s.problems(numbers=("extreme",))),
    Law(poisoned, lambda s: s.problems()),
    Law(lse, lambda s: s.problems(), ("return_lse",)),
    Law(long, long_problems, examples=15),
    Law(together, lambda s: s.problems(optional=DEFINED), may_refuse=True),
)
