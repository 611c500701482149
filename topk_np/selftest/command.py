"""What ``python -m topk_np selftest`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from topk_np._process import UserError
from topk_np.kernels import engine
from topk_np.selftest.checks import CHECKS, Finding, run_check
from topk_np.selftest.device import Device, find_device
from topk_np.selftest.times import Timing, measure

NAME, COLUMN = 14, 16
SHOWN = 3  # of the cases that went wrong


def run(*, backend: str, cases: int, seed: int, repeats: int, out: Path) -> bool:
    """
    Check a device, time it, print what was found and save it.

    Parameters
    ----------
    backend : str
        "cupy" or "numpy".
    cases : int
        Cases of each check.
    seed : int
        What they are drawn from.
    repeats : int
        Rounds that are timed; 0 times nothing.
    out : Path
        The JSON file.

    Returns
    -------
    bool
        Whether every check passed.

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
    timings = measure(device, repeats) if repeats else []
    if timings:
        print(_table(timings))
    _save(out, device, findings, timings)
    print(f"\nData: {out}")
    if device.note:
        print(f"Note: this is {device.note}.")
    print(_verdict(findings))
    return _passed(findings)


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
    worst = f"{finding.worst:.2f}" if finding.worst else "exact"
    line = f"{finding.name:{NAME}}{finding.cases:>6}{worst:>7}   {verdict}{finding.what}"
    more = len(finding.wrong) - SHOWN
    shown = [*finding.wrong[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return "\n".join([line, *(f"{'':{NAME}}{text}" for text in shown)])


def _table(timings: Sequence[Timing]) -> str:
    width = max(len(timing.what) for timing in timings) + 2
    lines: list[str] = []
    names: list[str] = []
    for timing in timings:
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


def _save(
    out: Path, device: Device, findings: Sequence[Finding], timings: Sequence[Timing]
) -> None:
    data = {
        "passed": _passed(findings),
        "device": device.facts,
        "note": device.note,
        "checks": [asdict(finding) for finding in findings],
        "timings": [asdict(timing) for timing in timings],
    }
    try:
        out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
