"""
Hypothesis strategies for problems.

Numbers are drawn in one of three ways: small whole ones, whose products are exact, so that scores
are often equal; normal ones from a drawn seed, all distinct; and extreme ones, whose scores are as
large as an exponential cannot be.

A problem is drawn as a list of queries and a list of keys, each of them a few bytes that everything
about it is made of, what is masked included. So Hypothesis can leave out any of them, and what
fails shrinks to few, short rows of small whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from topk_np.options.relative import ALiBi, T5Bias
from topk_np.testing.biases import BIAS_FUNCTIONS, MASK_FUNCTIONS
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.rows import WHOLE, Rows, biases, hidden, rows
from topk_np.testing.subject import check_names

NUMBERS = ("whole", "normal", "extreme")
OPTIONS = (
    "k",
    "mask",
    "is_causal",
    "query_offset",
    "window",
    "query_lengths",
    "key_lengths",
    "bias",
    "scale",
    "softcap",
    "dropout",
    "always_keep",
    "p",
    "max_k",
    "chunk_size",
)
"""The options of attention that can be drawn."""
FORMS = {
    "mask_function": "mask",
    "bias_function": "bias",
    "alibi": "bias",
    "t5_bias": "bias",
}
"""Forms of an option that not everyone takes who names it: the option that each is passed as."""
BY_POSITION = ("always_keep", "is_causal", "window", *FORMS)
WIDTHS = (1, 4)  # their default scale is a power of two, so that whole numbers' scores are exact
LARGE = 2.0**5  # so many times larger, the products of rows are still below float16's largest


@st.composite
def attention_problems(
    draw: st.DrawFn,
    *,
    dtype: str = "float64",
    max_length: int = 8,
    min_length: int = 0,
    options: Collection[str] = OPTIONS,
    required: Collection[str] = (),
    leading_axes: int | None = None,
    numbers: Collection[str] = NUMBERS,
) -> AttentionProblem:
    """
    Problems of attention: shapes, masks, ties, extreme values, degenerate sizes.

    Parameters
    ----------
    dtype : str, default "float64"
        Of all floating arrays.
    max_length : int, default 8
        The most queries and the most keys.
    min_length : int, default 0
        The fewest.
    options : collection of str
        The options of `topk_np.topk_attention` that may be drawn, by default all that are known
        here but the forms. Where one needs positions and "query_offset" is not among them, there
        are as many keys as queries. "k" is drawn for every problem, "p" instead for some, with
        "max_k", and the others for some. Forms are drawn where they are named: "mask_function", a
        mask that is a function of positions; and a bias that is one, "bias_function", or an
        `topk_np.ALiBi`, "alibi", or a `topk_np.T5Bias`, "t5_bias".
    required : collection of str, default ()
        Those that every problem has.
    leading_axes : int, optional
        How many axes stand before those of rows and columns, by default none to two.
    numbers : collection of str
        How numbers are drawn: "whole", "normal", "extreme", by default all.

    Returns
    -------
    strategy of AttentionProblem

    Raises
    ------
    ValueError
        If an option is not known.

    Examples
    --------
    >>> from hypothesis import given
    >>> from topk_np import topk_attention
    >>> from topk_np.testing import attention_problems
    >>> @given(attention_problems(max_length=5, options=["k", "mask"]))
    ... def test_the_output_has_a_row_for_each_query(problem):
    ...     out = topk_attention(*problem.arrays, **problem.options)
    ...     assert out.shape == problem.dout.shape
    >>> test_the_output_has_a_row_for_each_query()
    """
    check_names("options", options, (*OPTIONS, *FORMS))
    axes = draw(st.integers(0, 2)) if leading_axes is None else leading_axes
    lead = draw(st.tuples(*[st.integers(1, 2)] * axes))
    if "query_offset" not in options and any(name in options for name in BY_POSITION):
        queries, keys = draw(rows(lead, min_length, max_length, sets=2))
    else:
        queries, keys = (draw(rows(lead, min_length, max_length, sets=1))[0] for _ in range(2))
    width, value_width = draw(st.sampled_from(WIDTHS)), draw(st.integers(1, 3))
    kind = draw(st.sampled_from([name for name in NUMBERS if name in numbers]))
    queries, keys = (replace(some, normal=kind == "normal") for some in (queries, keys))
    size = LARGE if kind == "extreme" else 1.0
    problem = AttentionProblem(
        (size * queries.numbers("vector", width)).astype(dtype),
        (size * keys.numbers("vector", width)).astype(dtype),
        keys.numbers("value", value_width).astype(dtype),
        queries.numbers("value", value_width).astype(dtype),
    )
    placed = False
    for name, values in _values(problem, queries, keys).items():
        # There is one rule: k, or p with max_k.
        always = name in required or name == "k" or (name == "max_k" and "p" in problem.options)
        if name in options and (always or (name != "max_k" and draw(st.booleans()))):
            problem = problem.without("k") if name == "p" else problem
            problem = problem.given(**{FORMS.get(name, name): draw(values())})
            placed = placed or name in BY_POSITION
    if placed and problem.queries != problem.keys and "query_offset" not in problem.options:
        return problem.given(query_offset=draw(st.integers(0, problem.keys)))
    return problem


def _values(
    problem: AttentionProblem, queries: Rows, keys: Rows
) -> dict[str, Callable[[], st.SearchStrategy[Any]]]:
    """The values that each option may have for a problem."""
    dtype = problem.query.dtype
    side = st.none() | st.integers(0, problem.keys)

    def one_of_some_shapes(full: np.ndarray) -> st.SearchStrategy[Any]:
        """An array (..., Q, N), or a part of it that broadcasts to as much."""
        head = full[(0,) * (full.ndim - 2)]
        return st.sampled_from([head, full, *([head[:1]] if len(head) else [])])

    def per_head(most: int) -> st.SearchStrategy[Any]:
        one = st.integers(0, most)
        return one | hnp.arrays(np.int64, problem.lead, elements=one) if problem.lead else one

    def slopes() -> st.SearchStrategy[np.ndarray]:
        return hnp.arrays(np.int8, problem.lead, elements=st.sampled_from([0, 1, 2])).map(
            lambda halves: np.asarray(halves / 2, dtype)
        )

    def tables() -> st.SearchStrategy[np.ndarray]:
        shapes = st.integers(4, 6).map(lambda buckets: (buckets, *problem.lead))
        return hnp.arrays(np.int8, shapes, elements=st.sampled_from(WHOLE.tolist()))

    return {
        "k": lambda: st.integers(1, problem.keys + 1),
        "p": lambda: st.sampled_from([0.5, 0.9, 1.0]),
        "max_k": lambda: st.integers(1, problem.keys + 1),
        "mask": lambda: one_of_some_shapes(~hidden(queries, keys)),
        "mask_function": lambda: st.sampled_from(MASK_FUNCTIONS),
        "is_causal": lambda: st.just(True),
        "query_offset": lambda: per_head(problem.keys),
        "window": lambda: st.tuples(side, side),
        "query_lengths": lambda: per_head(problem.queries),
        "key_lengths": lambda: per_head(problem.keys),
        "bias": lambda: one_of_some_shapes(biases(queries, keys).astype(dtype)),
        "bias_function": lambda: st.sampled_from(BIAS_FUNCTIONS),
        "alibi": lambda: slopes().map(ALiBi),
        "t5_bias": lambda: st.builds(
            T5Bias, tables().map(lambda t: t.astype(dtype)), st.booleans(), st.integers(4, 9)
        ),
        "scale": lambda: st.sampled_from([1.0, 0.5, 0.3]),
        "softcap": lambda: st.sampled_from([1.0, 5.0]),
        "dropout": lambda: st.tuples(st.sampled_from([0.5, 0.1]), st.integers(0, 2**32 - 1)),
        "always_keep": lambda: st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "chunk_size": lambda: st.integers(1, problem.queries + 1),
    }
