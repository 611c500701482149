"""What has to hold on a device, each a function that draws one case and looks at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import topk_np
from topk_np.selftest.device import Device
from topk_np.selftest.problems import Problem, Rng, Run, draw_attention, draw_ffn, draw_options

DTYPES = ("float16", "float32", "float64")
ROUNDINGS = {"float16": 2, "float32": 200, "float64": 200}  # that a result may be off by
LONGEST = {False: 70, True: 3000}  # keys of a drawn problem, where the device is slow or fast


class Wrong(Exception):
    """What a check found."""


@dataclass
class Case:
    """One case of a check, and the worst that was found in it."""

    device: Device
    rng: Rng
    dtype: str
    worst: float = 0.0
    """The largest error, where 1 is the most that is allowed."""

    @property
    def longest(self) -> int:
        """The most keys of a problem."""
        return LONGEST[self.device.fast]

    def close(self, what: str, found: np.ndarray, expected: np.ndarray) -> None:
        """Want `found`, of this case's dtype, to be the float64 `expected` up to rounding."""
        self.equal(f"{what}'s dtype", np.asarray(found.dtype.name), np.asarray(self.dtype))
        self.equal(f"{what}'s NaN", np.isnan(found), np.isnan(expected))
        size = max(1.0, float(np.abs(expected).max(initial=0, where=np.isfinite(expected))))
        allowed = ROUNDINGS[self.dtype] * float(np.finfo(self.dtype).eps) * size
        error = float(np.nanmax(np.abs(found - expected), initial=0))
        self.worst = max(self.worst, error / allowed)
        if not error <= allowed:
            raise Wrong(f"{what} is off by {error:.1e}, allowed are {allowed:.1e}")

    def equal(self, what: str, found: np.ndarray, expected: np.ndarray) -> None:
        """Want two arrays to be the same; NaN is equal to NaN."""
        if found.shape != expected.shape:
            raise Wrong(f"{what} has shape {found.shape}, expected {expected.shape}")
        if not np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"):
            raise Wrong(f"{what} differs in {np.sum(found != expected)} of {found.size} places")

    def results(self, found: Run, expected: Run) -> None:
        """Want output and gradients to be those expected, up to rounding."""
        self.close("the output", found.out, expected.out)
        for i, (grad, other) in enumerate(zip(found.grads, expected.grads, strict=True)):
            self.close(f"gradient {i}", grad, other)


def ranking(case: Case) -> None:
    """top_k: largest first, NaN before all, the lower index among equals, at any k."""
    rows, length = int(case.rng.integers(0, 9)), int(case.rng.integers(1, 4 * case.longest))
    x = case.rng.integers(-3, 4, (rows, length)).astype(case.dtype)
    x[case.rng.random(x.shape) < 0.05] = np.nan
    x[case.rng.random(x.shape) < 0.05] = np.inf
    x[case.rng.random(x.shape) < 0.05] = -np.inf
    x[case.rng.random(x.shape) < 0.05] = -0.0
    k = int(case.rng.integers(1, length + 2))
    found = topk_np.top_k(case.device.asarray(x), k)
    order = np.lexsort((-x, ~np.isnan(x)), axis=-1)[:, :k]
    case.equal("indices", case.device.to_numpy(found.indices), order)
    case.equal("values", case.device.to_numpy(found.values), np.take_along_axis(x, order, axis=1))


def ties(case: Case) -> None:
    """Among equal scores the lower index is kept, whatever the chunks."""
    problem = draw_attention(case.rng, case.dtype, case.longest, whole=True)
    expected = problem.solve().indices
    case.equal("indices", problem.solve(case.device).indices, expected)
    chunked = problem.solve(case.device, chunk_size=int(case.rng.integers(1, 9)))
    case.equal("indices in other chunks", chunked.indices, expected)


def covering(case: Case) -> None:
    """Where k covers all keys, attention and its gradients are the dense ones."""
    problem = draw_attention(case.rng, case.dtype, case.longest, k=10**6)
    case.results(problem.solve(case.device), problem.solve_dense(_allowed(problem)))


def restricted(case: Case) -> None:
    """For smaller k they are those of dense attention on the kept keys, the best of each query."""
    problem = draw_attention(case.rng, case.dtype, case.longest)
    found = problem.solve(case.device)
    case.results(found, problem.solve_dense(problem.pairs(found.indices)))
    _want_best(case, problem, found.indices)


def options(case: Case) -> None:
    """The same with biases, capped scores, lengths, dropout and keys that are always kept."""
    problem = draw_options(case.rng, case.dtype, case.longest)
    found = problem.solve(case.device)
    case.results(found, problem.solve_dense(problem.pairs(found.indices)))


def feed_forward(case: Case) -> None:
    """Feed-forward layers: each activation, plain and gated, by score and by activation."""
    problem = draw_ffn(case.rng, case.dtype, case.longest)
    case.results(problem.solve(case.device), problem.solve())


def poison(case: Case) -> None:
    """A masked NaN contributes nothing; one that is allowed makes the queries that see it NaN."""
    problem = draw_attention(case.rng, case.dtype, case.longest)
    query, key, value = (array.copy() for array in problem.inputs)
    hidden = int(case.rng.integers(key.shape[-2]))
    key[..., hidden, :] = value[..., hidden, :] = np.nan
    poisoned = Problem("attention", (query, key, value), problem.dout, problem.options)
    others = np.arange(key.shape[-2])[None, :] != hidden
    found = poisoned.solve(case.device, mask=others)
    case.results(found, problem.solve_dense(problem.pairs(found.indices) & others))
    seen = _allowed(problem)[..., hidden]
    nan = np.isnan(poisoned.solve(case.device).out).all(axis=-1)
    case.equal("which rows are NaN", nan, seen)


def repeatable(case: Case) -> None:
    """The same call twice gives the same bits, gradients too."""
    problem = draw_attention(case.rng, case.dtype, case.longest)
    one, two = (problem.solve(case.device) for _ in range(2))
    for first, second in zip([one.out, *one.grads], [two.out, *two.grads], strict=True):
        case.equal("a second run", second.view(np.uint8), first.view(np.uint8))


def staying(case: Case) -> None:
    """Neither pass copies anything to the host."""
    problem = draw_attention(case.rng, case.dtype, case.longest)
    arrays = (*problem.inputs, problem.dout)
    query, key, value, dout = (case.device.asarray(array) for array in arrays)
    with case.device.stay():
        out, residuals = topk_np.topk_attention_fwd(query, key, value, k=problem.options["k"])
        grads = topk_np.topk_attention_bwd(residuals, dout)
    kinds = {type(array) for array in (out, *grads) if array is not None}
    case.equal("the kind of results", np.asarray(kinds == {type(query)}), np.asarray(True))


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        ranking,
        ties,
        covering,
        restricted,
        options,
        feed_forward,
        poison,
        repeatable,
        staying,
    )
}
"""The checks by name; the docstring of each says what has to hold."""


@dataclass(frozen=True)
class Finding:
    """How a check went."""

    name: str
    what: str
    cases: int
    worst: float
    """The largest error in units of what is allowed; 0 where results have to be equal."""
    wrong: tuple[str, ...]
    """What was found wrong; empty where all is well."""


def run_check(name: str, device: Device, cases: int, seed: int) -> Finding:
    """Draw so many cases of a check, dtypes in turn, and look at all of them."""
    worst, wrong = 0.0, []
    for number in range(cases):
        dtype = DTYPES[number % len(DTYPES)]
        case = Case(device, np.random.default_rng([seed, number]), dtype)
        try:
            CHECKS[name](case)
        except Exception as error:  # a check that breaks is a finding, and the others still run
            problem = error if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
            wrong.append(f"case {number} ({dtype}): {' '.join(str(problem).split())}")
        worst = max(worst, case.worst)
    return Finding(name, (CHECKS[name].__doc__ or "").strip(), cases, worst, tuple(wrong))


def _allowed(problem: Problem) -> np.ndarray:
    """Boolean (..., Q, N): the pairs that no mask forbids."""
    return problem.pairs(problem.solve(k=10**6).indices)


def _want_best(case: Case, problem: Problem, indices: np.ndarray) -> None:
    """Want no allowed key that was not kept to score more than a kept one, but for rounding."""
    query, key, _ = (array.astype(np.float64) for array in problem.inputs)
    scores = query @ np.swapaxes(key, -1, -2)
    allowed = _allowed(problem)
    kept = problem.pairs(indices)
    k = min(problem.options["k"], key.shape[-2])
    counts = np.minimum(allowed.sum(axis=-1), k)
    case.equal("the numbers of kept keys", (kept & allowed).sum(axis=-1), counts)
    least = np.min(scores, axis=-1, where=kept, initial=np.inf)
    best_left = np.max(scores, axis=-1, where=allowed & ~kept, initial=-np.inf)
    slack = 200 * np.finfo(np.float32 if case.dtype == "float16" else case.dtype).eps
    size = max(1.0, float(np.abs(scores).max(initial=0)))
    if np.any(best_left - least > slack * size):
        raise Wrong("a key was kept that scores less than one that was not")
