"""
The memory of a deep model: 12 blocks forward and backward, with each way to attend.

A run has a process of its own, and its memory is the growth of that process's peak once everything
is imported. All runs recompute each block in the backward pass, and release what is no longer
needed.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np

from topk_np._process import MEBI, Machine, RunFailed, Tick, UserError, peak_memory, run_alone
from topk_np.bench.report import duration, save_json
from topk_np.bench.sweep import Limits
from topk_np.layers import BlockConfig, encoder_block_bwd, encoder_block_fwd
from topk_np.schedule.plan import DEFAULT_MEMORY_BUDGET

LENGTHS = (512, 1024, 2048, 4096, 8192)
LONGEST_DENSE = 4096
FFN_CHUNK = 256  # tokens at once in a dense feed-forward layer: scratch of about 64 MiB
K, FFN_K = 64, 512
LABEL, COLUMN = 16, 12  # widths in the table


class Model(NamedTuple):
    """The sizes of the paper's model; one sequence at a time, causal, float32."""

    layers: int = 12
    width: int = 768
    hidden: int = 3072
    heads: int = 12


PAPER = Model()
SMALL = Model(1, 24, 48, 12)  # of the run that loads whatever is loaded on first use


@dataclass(frozen=True)
class Method:
    """One way to compute the blocks."""

    name: str
    what: str
    fields: dict[str, Any]
    """Options of `BlockConfig`."""
    quadratic: bool = False
    """Whether its memory grows with the square of the length; it stops at `LONGEST_DENSE`."""

    def config(self, model: Model) -> BlockConfig:
        """The options of a block."""
        own = {"ffn_options": {"chunk_size": FFN_CHUNK}, **self.fields}
        return BlockConfig(heads=model.heads, recompute=True, **own)


TOPK, DENSE = "topk", "dense"
METHODS = {
    method.name: method
    for method in (
        Method(
            "dense-heads",
            "dense, the scores of all 12 heads at once",
            {"attention_options": {"workers": PAPER.heads}},
            quadratic=True,
        ),
        Method(DENSE, "dense, the scores of a head at once in each thread", {}, quadratic=True),
        Method(
            "chunked",
            "dense in chunks of 1,024 queries, the paper's setting",
            {"attention": "chunked", "chunk_size": 1024},
        ),
        Method(
            "chunked-budget",
            "dense in chunks within the scratch of top-k, 64 MiB",
            {
                "attention": "chunked",
                "chunk_size": None,
                "attention_options": {"memory_budget": DEFAULT_MEMORY_BUDGET},
            },
        ),
        Method(TOPK, f"top-k, k = {K}", {"attention": "topk", "k": K}),
        Method(
            "topk-ffn",
            f"top-k, k = {K}, and the {FFN_K} best feed-forward units",
            {"attention": "topk", "k": K, "ffn_k": FFN_K, "ffn_options": {}},
        ),
    )
}


class Run(NamedTuple):
    """Memory and time of one run."""

    method: str
    length: int
    memory: int
    """Bytes beyond the imports, at the peak of the whole process."""
    parameters: int
    """Bytes of the parameters, and of their gradients."""
    seconds: float
    cpu_seconds: float
    """CPU time of all cores, which other programs on the machine prolong less."""

    @property
    def beyond(self) -> int:
        """Bytes beyond parameters and their gradients."""
        return self.memory - 2 * self.parameters


def try_alone(method: str, length: int, limit: float) -> Run | str:
    """Run in a new process; a sentence if that fails or takes more than `limit` seconds."""
    try:
        return run_alone(measure, method, length, limit=limit)[0]
    except RunFailed as error:
        return str(error)


def sweep(
    lengths: Sequence[int], done: Sequence[Run], limits: Limits, tick: Tick
) -> Iterator[Run | str]:
    """The runs that are not done yet, shortest first; a sentence for each that is left out."""
    runs = {(run.method, run.length): run for run in done}
    for length in sorted(set(lengths)):
        for method in METHODS.values():
            if (method.name, length) in runs or (method.quadratic and length > LONGEST_DENSE):
                continue
            tick(f"{method.name}, {length:,}")
            shorter = runs.get((method.name, length // 2))
            growth = 4 if method.quadratic else 2
            if shorter is not None and growth * shorter.beyond > limits.memory:
                taken: Run | str = f"it may take {growth * shorter.beyond / MEBI:,.0f} MiB"
            else:
                taken = try_alone(method.name, length, limits.seconds)
            if isinstance(taken, Run):
                runs[method.name, length] = taken
                yield taken
            else:
                yield f"{method.name} left out at {length:,}: {taken}"


def measure(name: str, length: int, model: Model = PAPER) -> Run:
    """Run a method in this process."""
    method = METHODS[name]
    importlib.import_module("scipy.sparse")  # which topk_np loads when a problem is large enough
    step(method.config(SMALL), SMALL, 128)
    before, start, cpu = peak_memory(), perf_counter(), process_time()
    params, grads = step(method.config(model), model, length)
    seconds, cpu = perf_counter() - start, process_time() - cpu
    memory = peak_memory() - before
    del grads  # only now: they count
    parameters = sum(
        array.nbytes for block in params for part in block.values() for array in part.values()
    )
    return Run(name, length, memory, parameters, seconds, cpu)


def step(config: BlockConfig, model: Model, length: int) -> tuple[list[Any], list[Any]]:
    """Parameters, and their gradients for the loss ``sum(out^2) / 2``."""
    rng = np.random.default_rng(0)
    params = [config.init(rng, width=model.width, hidden=model.hidden) for _ in range(model.layers)]
    x, kept = rng.standard_normal((length, model.width), np.float32), []
    for block in params:
        x, residuals = encoder_block_fwd(x, block, config, is_causal=True)
        kept.append(residuals)
    del residuals
    dx, grads = x, []
    while kept:
        # Each block lets go of its input when it is done.
        dx, of_block = encoder_block_bwd(kept.pop(), dx)
        grads.append(of_block)
    return params, grads


def slopes(runs: list[Run]) -> tuple[float, float]:
    """
    The growth of memory beyond the parameters between the two longest runs of a method.

    It is given as a power of the length, and in bytes a token.
    """
    shorter, longer = sorted(runs, key=lambda run: run.length)[-2:]
    power = math.log(longer.beyond / shorter.beyond) / math.log(longer.length / shorter.length)
    return power, (longer.beyond - shorter.beyond) / (longer.length - shorter.length)


def save_runs(path: Path, machine: Machine, runs: Sequence[Run]) -> None:
    """Write all runs."""
    save_json(path, machine, model=PAPER._asdict(), runs=[run._asdict() for run in runs])


def load_runs(path: Path, machine: Machine) -> list[Run]:
    """The runs in the file of an earlier run of the command, if there is one."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
        before, runs = found["machine"], [Run(**run) for run in found["runs"]]
        same = all(before[name] == machine[name] for name in ("cpu", "cores"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of this command; move it away") from error
    if not same:
        raise UserError(
            f"{path} is of another machine, {before['cpu']}, {before['cores']} cores: move it "
            "away, or name another folder with --out"
        )
    return runs


def table(runs: Sequence[Run]) -> str:
    """Memory, time and slopes; a line for each method, a column for each length."""
    lengths = sorted({run.length for run in runs})
    cells = {(run.method, run.length): run for run in runs}
    names = [name for name in METHODS if any(run.method == name for run in runs)]
    title = (
        f"{PAPER.layers} layers, d = {PAPER.width}, d_ff = {PAPER.hidden}, {PAPER.heads} heads, "
        "causal, forward+backward, one sequence"
    )
    lines = [title, "-" * (LABEL + COLUMN * len(lengths))]

    def block(what: str, show: Callable[[Run], str]) -> None:
        lines.append(f"{what:{LABEL}}" + "".join(f"{length:>{COLUMN},}" for length in lengths))
        for name in names:
            found = (cells.get((name, length)) for length in lengths)
            words = ("-" if run is None else show(run) for run in found)
            lines.append(f"{name:{LABEL}}" + "".join(f"{word:>{COLUMN}}" for word in words))

    def of_dense(run: Run) -> str:
        dense = cells.get((DENSE, run.length))
        return "-" if dense is None else f"{run.beyond / dense.beyond:.2f}"

    block("peak, MiB", lambda run: f"{run.memory / MEBI:,.0f}")
    block("beyond, MiB", lambda run: f"{run.beyond / MEBI:,.0f}")
    block("beyond / dense", of_dense)
    block("time", lambda run: duration(run.seconds))
    block("CPU time", lambda run: duration(run.cpu_seconds))
    lines.append(f"{'growth':{LABEL}}{'length^':>{COLUMN}}{'MiB/1,024':>{COLUMN}}  between")
    for name in names:
        own = sorted(run.length for run in runs if run.method == name)[-2:]
        if len(own) == 2:
            power, each = slopes([cells[name, length] for length in own])
            lines.append(
                f"{name:{LABEL}}{power:>{COLUMN}.2f}{each * 1024 / MEBI:>{COLUMN}.0f}  "
                f"{own[0]:,} and {own[1]:,}"
            )
    lines += ["", *(f"{name:{LABEL}}{METHODS[name].what}" for name in names), *_verdict(cells)]
    return "\n".join(lines) + "\n"


def markdown(runs: Sequence[Run]) -> str:
    """A table in Markdown: in each cell the peak, in brackets what is beyond, and CPU time."""
    lengths = sorted({run.length for run in runs})
    head = ["", *(f"{length:,}" for length in lengths), "for each 1,024 tokens more"]
    lines = [head, ["---"] * len(head)]
    for name, method in METHODS.items():
        own = {run.length: run for run in runs if run.method == name}
        if own:
            cells = ("" if length not in own else _cell(own[length]) for length in lengths)
            lines.append([f"`{name}`: {method.what}", *cells, _growth(list(own.values()))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(run: Run) -> str:
    return f"{run.memory / MEBI:,.0f} ({run.beyond / MEBI:,.0f}), {run.cpu_seconds:.0f} s"


def _growth(runs: list[Run]) -> str:
    """The growth between the two longest runs."""
    return f"{slopes(runs)[1] * 1024 / MEBI:,.0f}" if len(runs) > 1 else ""


def _verdict(cells: dict[tuple[str, int], Run]) -> list[str]:
    """Lines that say how to read the table."""
    (run, *_) = cells.values()
    held = 2 * run.parameters / MEBI
    lines = [
        "Peak: of a process of its own, beyond its imports. Beyond: without the parameters and",
        f"their gradients, {held:,.0f} MiB, which are the same for all.",
    ]
    for other in METHODS:
        both = [length for name, length in cells if name == TOPK and (other, length) in cells]
        if both and other != TOPK:
            length = max(both)
            topk, than = cells[TOPK, length], cells[other, length]
            lines.append(
                f"{TOPK} at {length:,} takes {topk.memory / than.memory:.2f} of {other}, "
                f"{topk.beyond / than.beyond:.2f} beyond."
            )
    return lines
