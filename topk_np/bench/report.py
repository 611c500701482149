"""The tables of the benchmark, and its JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from topk_np._process import MEBI, Machine, write_whole
from topk_np.bench.cases import ATTENTION, Case
from topk_np.bench.figures import Outcome
from topk_np.bench.peers import OURS, PEERS
from topk_np.bench.sweep import Row

LABEL, COLUMN = 15, 15


def heading(machine: Machine, /) -> str:
    """The machine, and a line where BLAS was told what to do."""
    words = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, NumPy {machine['numpy']}, SciPy {machine['scipy']}, "
        f"PyTorch {machine['torch'] or 'not installed'}",
        f"BLAS: {'; '.join(machine['blas'])}",
    ]
    if machine["blas_settings"]:
        pairs = ", ".join(f"{name}={value}" for name, value in machine["blas_settings"].items())
        words.append(f"Note: {pairs} in the environment, so BLAS may not run as it does by default")
    return "\n".join(words) + "\n"


def tables(rows: Sequence[Row], /) -> str:
    """Time, time against topk_np, and memory of each series of cases; a line for each peer."""
    series: dict[tuple[str, bool, str], list[Row]] = {}
    for row in rows:
        series.setdefault((row.case.kind, row.case.causal, row.mode), []).append(row)
    return "\n\n".join([*map(_table, series.values()), _legend(row.peer for row in rows)]) + "\n"


def _table(rows: Sequence[Row]) -> str:
    cases = list(dict.fromkeys(row.case for row in rows))
    peers = [name for name in PEERS if any(row.peer == name for row in rows)]
    cells = {(row.peer, row.case): row for row in rows}
    lines = [_title(rows[0])]

    def block(what: str, show: Callable[[Row], str]) -> None:
        lines.append(f"{what:{LABEL}}" + "".join(f"{_column(case):>{COLUMN}}" for case in cases))
        for peer in peers:
            found = [cells.get((peer, case)) for case in cases]
            words = ("-" if row is None else show(row) for row in found)
            lines.append(f"{peer:{LABEL}}" + "".join(f"{word:>{COLUMN}}" for word in words))

    block("time", lambda row: duration(row.median))
    block(f"/ {OURS}", lambda row: "-" if row.ratio is None else f"{row.ratio:.2f}")
    block("memory", lambda row: f"{row.memory / MEBI:,.0f} MiB")
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _title(row: Row) -> str:
    case = row.case
    if case.kind == ATTENTION:
        causal = "causal" if case.causal else "not causal"
        return f"Attention, {case.heads} heads, D = {case.width}, k = 64, {causal}, {row.mode}"
    return f"Feed-forward, ReLU, k = 256, {row.mode}"


def _column(case: Case) -> str:
    return f"{case.keys:,}" if case.kind == ATTENTION else f"({case.width}, {case.keys})"


def _legend(names: Iterable[str], /) -> str:
    """The peers in words, and how to read the table."""
    found = set(names)
    lines = [f"{name:{LABEL}}{peer.what}" for name, peer in PEERS.items() if name in found]
    return "\n".join(
        [
            *lines,
            "Time: median of the rounds. Memory: beyond the inputs, at the peak of a process of "
            "its own.",
        ]
    )


def duration(seconds: float, /) -> str:
    """Seconds, or milliseconds if few."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def figures_table(outcomes: Sequence[Outcome], /) -> str:
    """The figures to reach, and whether they are."""
    width = max(len(outcome.figure.what) for outcome in outcomes) + 2
    head = f"{'topk_np / other, or memory':{width}}{'at most':>12}{'measured':>12}  ok"
    lines = [head, "-" * (len(head) + 4)]
    for outcome in outcomes:
        figure = outcome.figure
        unit = "" if figure.theirs else " MiB"
        most = f"{figure.at_most:.{0 if unit else 2}f}{unit}"
        if outcome.measured is None:
            shown, verdict = "-", f"not measured: {outcome.missing}"
        else:
            shown = f"{outcome.measured:.{0 if unit else 3}f}{unit}"
            verdict = "ok" if outcome.ok else "not ok"
        lines.append(f"{figure.what:{width}}{most:>12}{shown:>12}  {verdict}")
    return "\n".join(lines) + "\n"


def save_json(path: Path, machine: Machine, **results: object) -> None:
    """Write a file, whole, in place of the one that is there."""
    write_whole(path, (json.dumps({"machine": machine, **results}, indent=1) + "\n").encode())


def as_data(row: Row, /) -> dict[str, object]:
    """A row for the JSON file."""
    return {
        **asdict(row.case),
        "mode": row.mode,
        "peer": row.peer,
        "seconds": row.median,
        "all_seconds": row.seconds,
        "ratio": row.ratio,
        "memory_bytes": row.memory,
    }
