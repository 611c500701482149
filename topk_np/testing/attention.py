"""`check_attention`: a battery of properties for any implementation of attention."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from topk_np._namespace import check_integer
from topk_np.testing.law import put_to_the_test
from topk_np.testing.laws import LAWS
from topk_np.testing.laws.base import Attention
from topk_np.testing.libraries import Library
from topk_np.testing.problems import AttentionProblem
from topk_np.testing.report import Report
from topk_np.testing.subject import Implementation


def check_attention(
    implementation: Implementation,
    /,
    *,
    options: Collection[str] = (),
    fwd: Implementation | None = None,
    bwd: Implementation | None = None,
    library: str | Library = "numpy",
    dtype: str = "float64",
    max_length: int = 8,
    leading_axes: int | None = None,
    examples: int = 50,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> Report:
    """
    Put an implementation of attention to the test, property by property.

    It is compared with attention by its definition, in float64, on drawn problems; what fails is
    reported with the smallest problem for which it does.

    Parameters
    ----------
    implementation : callable
        ``f(query, key, value, **options) -> out``, shapes and options as in
        `topk_np.topk_attention`. Dense attention where it has no option `k`.
    options : collection of str, default ()
        Options to try beside those that the signature of `implementation` names; what it takes as
        ``**kwargs`` counts for nothing. An option is passed only where a problem has it. Forms of
        `mask` and `bias` are tried only where they are listed: "mask_function", "bias_function",
        "alibi" and "t5_bias", as in `attention_problems`.
    fwd, bwd : callable, optional
        ``fwd(query, key, value, **options) -> (out, residuals)`` and ``bwd(residuals, dout) ->
        (dquery, dkey, dvalue)``, to check gradients too. PyTorch and JAX need none: they
        differentiate `implementation`.
    library : {"numpy", "cupy", "torch", "jax"} or Library
        What arrays it takes.
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Of the arrays, and so how sharp the comparison is. Half precision may be computed in half
        precision.
    max_length : int, default 8
        The most queries and keys of a drawn problem; one property takes up to 300.
    leading_axes : int, optional
        How many axes stand before those of rows and columns: 2 if it wants exactly (batch, heads,
        rows, columns). By default none to two.
    examples : int, default 50
        Problems drawn for each property.
    seed : int, default 0
        What they are drawn from.
    only : collection of str, optional
        The properties to check, by default all.

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

    Notes
    -----
    Tolerances are those of `AttentionProblem.tolerance`, derived from the dtype, the lengths and
    the sizes of the numbers. Queries whose k-th and next best scores are within rounding of each
    other are left out where the properties about ties are not the question.

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.testing import check_attention
    >>> def attention(query, key, value):
    ...     weights = np.exp(query @ key.mT / np.sqrt(query.shape[-1]))  # this may overflow
    ...     return weights / weights.sum(axis=-1, keepdims=True) @ value
    >>> report = check_attention(attention, only=["values", "extreme", "mask"])
    >>> report.names("failed")
    ['extreme']
    >>> report["mask"].message
    'it has no option mask'
    """
    if leading_axes is not None:
        leading_axes = check_integer("leading_axes", leading_axes, least=0)
    subject = Attention.of(
        implementation, options, library, dtype, max_length, fwd, bwd, leading_axes=leading_axes
    )
    array = np.ones(((1,) * (leading_axes or 0)) + (2, 4), dtype)
    ordinary = AttentionProblem(array, array, array, array, {"k": 1} if subject.has("k") else {})
    return put_to_the_test(
        subject, LAWS, ordinary, subject.out_of, only=only, examples=examples, seed=seed
    )
