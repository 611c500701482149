"""
The program ``python -m topk_np selftest``: check a device, time it, and report.

The properties of `topk_np.testing` are those of small problems. Large ones, which fill a device,
are compared with NumPy in double precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import topk_np
from topk_np._process import UserError, write_whole
from topk_np.activations import ACTIVATIONS
from topk_np.kernels import engine
from topk_np.selftest.device import Device, Timing, find_device, timings
from topk_np.testing import check_attention, check_ffn, check_topk, ffn, laws, topk
from topk_np.testing.report import Report
from topk_np.testing.strategies import FORMS

DTYPES = ("float16", "float32", "float64")
ROUNDINGS = {"float16": 2, "float32": 200, "float64": 200}  # that a large result may be off by
LONGEST = {False: 70, True: 3000}  # keys of a large problem, where the device is slow or fast
CROWDS = {False: ((300, 40), (2, 5000)), True: ((5000, 300), (8, 100_000))}
NAME, COLUMN = 32, 16  # widths in the report
SHOWN = 3  # of the faults that a check found


def run(*, backend: str, cases: int, seed: int, repeats: int, out: Path) -> bool:
    """
    Check a device, time it, print the findings and save them.

    Parameters
    ----------
    backend : str
        "cupy" or "numpy".
    cases : int
        Cases of each check, and of each property with each dtype.
    seed : int
        The seed that cases are drawn from.
    repeats : int
        Rounds that are timed; 0 times nothing.
    out : Path
        The JSON file.

    Returns
    -------
    bool
        True if every check passed.

    Raises
    ------
    UserError
        If there is no such device, or the file cannot be written.
    """
    device = find_device(backend)
    print(_heading(device))
    findings = []
    for name in CHECKS:
        findings.append(run_check(name, device, cases, seed))
        print(_finding(findings[-1]), flush=True)
    save = partial(_save, out, device, findings)
    save([])  # whatever the timings come to
    timed = list(timings(device, repeats)) if repeats else []
    if timed:
        print(_table(timed))
        save(timed)
    print(f"\nData: {out}")
    if device.note:
        print(f"Note: this is {device.note}.")
    print(_verdict(findings))
    return _passed(findings)


class Wrong(Exception):
    """A fault that a check found."""


@dataclass(frozen=True)
class Check:
    """Something that has to hold on a device."""

    what: str
    holds: Callable[[Device, str, int, int], float]
    """
    Of a device, a dtype, a number of cases and a seed. Raises an error where it does not hold, and
    returns the worst error, where 1 is the most that is allowed and 0 is that none is measured.
    """


@dataclass(frozen=True)
class Finding:
    """The outcome of a check."""

    name: str
    what: str
    cases: int
    worst: float
    """The largest error in units of what is allowed; 0 where none is measured."""
    wrong: tuple[str, ...]
    """The faults; empty where all is well."""


def run_check(name: str, device: Device, cases: int, seed: int) -> Finding:
    """Run a check with each dtype."""
    check, worst, wrong = CHECKS[name], 0.0, list[str]()
    for dtype in DTYPES:
        try:
            worst = max(worst, check.holds(device, dtype, cases, seed))
        except Exception as fault:  # a check that breaks is a finding, and the others still run
            problem = fault if isinstance(fault, Wrong) else f"{type(fault).__name__}: {fault}"
            wrong.append(f"{dtype}: {' '.join(str(problem).split())}")
    return Finding(name, check.what, cases, worst, tuple(wrong))


def _properties(
    kind: str, check: Callable[..., Report], every: Sequence[Any], **how: Any
) -> dict[str, Check]:
    """A check for each property of a function of this library."""
    function = getattr(topk_np, kind)

    def holds(name: str, device: Device, dtype: str, cases: int, seed: int) -> float:
        drawn = {"library": device.xp.__name__, "dtype": dtype, "examples": cases, "seed": seed}
        found = check(function, only=[name], **drawn, **how)[name]
        if found.status == "failed":
            raise Wrong(f"{found.message}, for {found.example!r}")
        return 0.0

    return {f"{kind}.{law.name}": Check(law.statement, partial(holds, law.name)) for law in every}


@dataclass
class Case:
    """A large problem: its device, dtype and random numbers, and the worst error found."""

    device: Device
    dtype: str
    rng: np.random.Generator
    worst: float = 0.0

    @property
    def longest(self) -> int:
        """The most keys or units of a problem."""
        return LONGEST[self.device.fast]

    def draw(self, *shape: int) -> np.ndarray:
        """Quarters from -1/2 to 1/2, whose products are exact, and with them what is selected."""
        return (self.rng.integers(-2, 3, shape) / 4).astype(self.dtype)

    def some(self, **options: Any) -> dict[str, Any]:
        """Some of the options."""
        return {name: option for name, option in options.items() if self.rng.random() < 0.4}

    def least_budget(self, arrays: Sequence[np.ndarray], options: dict[str, Any]) -> int:
        """The least memory budget of attention, as its error says: keys are taken in blocks."""
        try:
            self.solve("topk_attention", arrays, {**options, "memory_budget": 1})
        except ValueError as error:
            return int(str(error).partition("at least ")[2].split()[0])
        raise Wrong("a memory budget of one byte was accepted")

    def solve(
        self, kind: str, arrays: Sequence[np.ndarray], options: dict[str, Any]
    ) -> list[np.ndarray]:
        """Indices, output and gradients, computed on the device."""
        found = _solve(kind, self.device.asarray, arrays, options)
        return [self.device.to_numpy(array) for array in found]

    def compare(
        self, kind: str, arrays: Sequence[np.ndarray], options: dict[str, Any], **more: Any
    ) -> None:
        """Want the solution, with `more` options, to be NumPy's in float64 up to rounding."""
        indices, *found = self.solve(kind, arrays, {**options, **more})
        wanted, *expected = _solve(kind, _wide, arrays, options)
        if not np.array_equal(indices, wanted):
            raise Wrong(f"{np.sum(indices != wanted)} of {indices.size} indices differ")
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            what = f"gradient {i - 1}" if i else "the output"
            if (one.dtype.name, one.shape) != (self.dtype, other.shape):
                raise Wrong(f"{what} has dtype {one.dtype} and shape {one.shape}")
            size = max(1.0, float(np.abs(other).max(initial=0)))
            allowed = ROUNDINGS[self.dtype] * float(np.finfo(self.dtype).eps) * size
            error = float(np.abs(one - other).max(initial=0))
            self.worst = max(self.worst, error / allowed)
            if not error <= allowed:  # NaN too
                raise Wrong(f"{what} is off by {error:.1e}, allowed are {allowed:.1e}")


def _solve(
    kind: str,
    asarray: Callable[[np.ndarray], Any],
    arrays: Sequence[np.ndarray],
    options: dict[str, Any],
) -> list[Any]:
    """Indices, output and gradients; the last array is the gradient of the output."""
    *inputs, dout = map(asarray, arrays)
    moved = {n: asarray(o) if isinstance(o, np.ndarray) else o for n, o in options.items()}
    out, residuals = getattr(topk_np, f"{kind}_fwd")(*inputs, **moved)
    grads = getattr(topk_np, f"{kind}_bwd")(residuals, dout)
    return [residuals.indices, out, *(grad for grad in grads if grad is not None)]


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def attention(case: Case) -> None:
    """Attention of real size, with masks, biases and blocks of keys, is that of NumPy."""
    rng, longest = case.rng, case.longest
    heads, queries, keys = (int(rng.integers(1, most)) for most in (4, longest // 4 + 2, longest))
    width, value_width, own = *rng.integers(1, 65, 2), rng.choice([1, heads])
    options = case.some(
        bias=case.draw(heads, queries, keys),
        is_causal=True,
        window=(int(rng.integers(keys)), int(rng.integers(keys))),
        mask=rng.random((queries, keys)) < 0.8,
        key_lengths=rng.integers(0, keys + 1, heads),
        always_keep=(int(rng.integers(3)), int(rng.integers(3))),
        dropout=(0.3, int(rng.integers(1000))),
        chunk_size=int(rng.integers(1, queries + 1)),
    )
    options |= {"query_offset": int(rng.integers(keys)), "k": int(rng.integers(1, keys + 2))}
    shapes = (heads, queries, width), (own, keys, width), (own, keys, value_width)
    arrays = [case.draw(*shape) for shape in (*shapes, (heads, queries, value_width))]
    options["scale"] = 0.25
    budget = case.some(memory_budget=case.least_budget(arrays, options))
    case.compare("topk_attention", arrays, options, **budget)


def feed_forward(case: Case) -> None:
    """Feed-forward layers of real size, plain and gated, with each activation, are NumPy's."""
    rng, longest = case.rng, case.longest
    tokens, units = int(rng.integers(1, longest // 4 + 2)), int(rng.integers(1, longest))
    width, value_width = rng.integers(1, 65, 2)
    activation, by_size = str(rng.choice([*ACTIVATIONS])), bool(rng.random() < 0.5)
    # Smooth activations are not exact: where units are ranked by them, all are kept.
    certain = not by_size or activation in ("identity", "relu")
    options = case.some(
        gate=case.draw(units, width), key_bias=case.draw(units), value_bias=case.draw(value_width)
    )
    options |= {
        "k": int(rng.integers(1, units + 2)) if certain else units,
        "activation": activation,
        "select": "activation" if by_size else "score",
    }
    shapes = (tokens, width), (units, width), (units, value_width), (tokens, value_width)
    case.compare("topk_ffn", [case.draw(*shape) for shape in shapes], options)


def crowds(case: Case) -> None:
    """The k largest of many rows, and of long ones, with ties, infinities and NaN."""
    for rows, columns in CROWDS[case.device.fast]:
        x = np.round(case.rng.standard_normal((rows, columns)), case.rng.integers(5))
        for special in (np.nan, np.inf, -np.inf, -0.0):
            x[case.rng.random(x.shape) < 0.01] = special
        x = x.astype(case.dtype)
        k = int(case.rng.integers(1, columns + 1))
        found = topk_np.top_k(case.device.asarray(x), k)
        order = np.lexsort((-x, ~np.isnan(x)), axis=-1)[:, :k]
        if not np.array_equal(case.device.to_numpy(found.indices), order):
            raise Wrong(f"of {rows} rows of {columns} numbers other {k} were selected")


def repeatable(case: Case) -> None:
    """The same call twice gives the same bits, gradients too."""
    arrays = [case.rng.standard_normal((2, case.longest, 16)).astype(case.dtype) for _ in range(4)]
    options = {"k": 9, "is_causal": True}
    one, two = (case.solve("topk_attention", arrays, options) for _ in range(2))
    if any(first.tobytes() != second.tobytes() for first, second in zip(one, two, strict=True)):
        raise Wrong("a second call gave other bits")


def staying(case: Case) -> None:
    """Neither pass copies anything to the host."""
    query, key, value, dout = (case.device.asarray(case.draw(2, 70, 16)) for _ in range(4))
    with case.device.stay():
        out, residuals = topk_np.topk_attention_fwd(query, key, value, k=9, is_causal=True)
        grads = topk_np.topk_attention_bwd(residuals, dout)
    if {type(array) for array in (out, *grads[:3])} != {type(query)}:
        raise Wrong("results are of another library than the inputs")


LARGE = (attention, feed_forward, crowds, repeatable, staying)


def _each(look: Callable[[Case], None]) -> Check:
    """A check that draws cases for a function, dtypes in turn, and looks at all of them."""

    def holds(device: Device, dtype: str, cases: int, seed: int) -> float:
        worst = 0.0
        for number in range(DTYPES.index(dtype), cases, len(DTYPES)):
            case = Case(device, dtype, np.random.default_rng([seed, number]))
            try:
                look(case)
            except Wrong as fault:
                raise Wrong(f"case {number}: {fault}") from fault
            worst = max(worst, case.worst)
        return worst

    return Check(" ".join((look.__doc__ or "").split()), holds)


def _own(kind: str) -> dict[str, Any]:
    return {"fwd": getattr(topk_np, f"{kind}_fwd"), "bwd": getattr(topk_np, f"{kind}_bwd")}


CHECKS: dict[str, Check] = {
    **_properties("top_k", check_topk, topk.LAWS),
    **_properties(
        "topk_attention", check_attention, laws.LAWS, options=FORMS, **_own("topk_attention")
    ),
    **_properties("topk_ffn", check_ffn, ffn.LAWS, **_own("topk_ffn")),
    **{f"large.{look.__name__}": _each(look) for look in LARGE},
}
"""The checks by name."""


def _passed(findings: Sequence[Finding]) -> bool:
    return not any(finding.wrong for finding in findings)


def _heading(device: Device) -> str:
    facts = {name.replace("_", " "): value for name, value in device.facts.items()}
    words = [f"Self-test on {device.name}", *(f"{name} {value}" for name, value in facts.items())]
    module = engine(device.namespace()).__name__.rpartition(".")[2]
    lines = [f"{', '.join(words)}; {module} kernels."]
    if device.note:
        lines.append(f"Note: this is {device.note}.")
    head = f"{'check':{NAME}}{'cases':>6}{'error':>7}   what has to hold"
    return "\n".join([*lines, "", head, "-" * 100])


def _finding(finding: Finding) -> str:
    verdict = f"{len(finding.wrong)} WRONG: " if finding.wrong else ""
    worst = f"{finding.worst:.2f}" if finding.worst else ""
    line = f"{finding.name:{NAME}}{finding.cases:>6}{worst:>7}   {verdict}{finding.what}"
    more = len(finding.wrong) - SHOWN
    shown = [*finding.wrong[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return "\n".join([line, *(f"{'':{NAME}}{text}" for text in shown)])


def _table(timed: Sequence[Timing]) -> str:
    width = max(len(timing.what) for timing in timed) + 2
    lines: list[str] = []
    names: list[str] = []
    for timing in timed:
        if list(timing.seconds) != names:
            names = list(timing.seconds)
            lines += ["", f"{'time':{width}}" + "".join(f"{name:>{COLUMN}}" for name in names)]
        cells = (f"{seconds * 1e3:.2f} ms" for seconds in timing.seconds.values())
        lines.append(f"{timing.what:{width}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells))
    return "\n".join(lines)


def _verdict(findings: Sequence[Finding]) -> str:
    wrong = [finding.name for finding in findings if finding.wrong]
    if wrong:
        return f"FAILED: {', '.join(wrong)}."
    cases = sum(finding.cases for finding in findings)
    return (
        f"PASSED: {len(findings)} checks, {cases} cases. An error of 1 would be the most allowed."
    )


def _save(out: Path, device: Device, findings: Sequence[Finding], timed: Sequence[Timing]) -> None:
    data = {
        "passed": _passed(findings),
        "device": device.facts,
        "note": device.note,
        "checks": [asdict(finding) for finding in findings],
        "timings": [asdict(timing) for timing in timed],
    }
    try:
        write_whole(out, (json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
