"""
The runs that the documentation reports, one JSON file each, and the table and plots made of them.

``python -m topk_np.studies.results`` trains the runs that are missing; after Ctrl-C, it goes on
where it stopped. ``--only dense`` takes the runs with that in their names, ``--show`` trains
nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from topk_np._process import MEBI, describe_machine, write_whole
from topk_np.runs.classifying import Settings
from topk_np.runs.records import CHECKPOINT, RESULTS, Line, read_log
from topk_np.runs.train import method


class Budget(NamedTuple):
    """The runs of each method of a task."""

    seeds: int
    steps: int
    test_k: tuple[int, ...] = ()
    """Keys kept at test time, where the command's own choice would take long."""


TASKS = {
    "listops": Budget(3, 4000),
    "listops-16-64": Budget(1, 4000),
    "text": Budget(1, 1000, (8, 16, 64)),
    "pixels": Budget(1, 1000, (8, 16, 64)),
}
METHODS: tuple[dict[str, Any], ...] = (
    {"attention": "dense"},
    {"attention": "topk", "k": 16},
    {"attention": "topk", "k": 8},
    {"attention": "dense", "ffn_k": 32},
    {"attention": "performer"},
    {"attention": "rfa"},
)
WINDOW = 50  # steps whose mean loss is one point of a curve

Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None, /) -> int:
    """Train what is missing, then make the table and the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="runs with it in their names")
    parser.add_argument("--show", action="store_true", help="only make the table and the plots")
    parser.add_argument("--work", type=Path, default=Path("topk_np_train"), help="checkpoints")
    parser.add_argument("--data", type=Path, default=Path("docs/data/train"), help="results")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="plots")
    options = parser.parse_args(arguments)
    options.data.mkdir(parents=True, exist_ok=True)
    if not options.show:
        for settings in plan():
            path = options.data / f"{settings.name}.json"
            if options.only in settings.name and not path.exists():
                code = train(settings, options.work / settings.name)
                if code:
                    return code
                keep(options.work / settings.name, path)
    show(options.data, options.figures)
    return 0


def plan() -> Iterator[Settings]:
    """All runs, those with the first seed before the others."""
    for seed in range(max(budget.seeds for budget in TASKS.values())):
        for task, budget in TASKS.items():
            if seed < budget.seeds:
                for chosen in METHODS:
                    yield Settings(task, seed=seed, **chosen)


def train(settings: Settings, folder: Path) -> int:
    """Train, from the checkpoint if there is one, in a process whose peak of memory is its own."""
    command = [sys.executable, "-m", "topk_np", "train", settings.task]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.default is not MISSING and value != field.default:
            option = f"--{field.name.replace('_', '-')}"
            command += [option] if value is True else [option, str(value)]
    budget = TASKS[settings.task]
    if budget.test_k and settings.attention in ("dense", "topk"):
        command += ["--test-k", *map(str, budget.test_k)]
    command += ["--steps", str(budget.steps), "--out", str(folder)]
    return subprocess.run(
        [*command, *(["--resume"] if (folder / CHECKPOINT).exists() else [])], check=False
    ).returncode


def keep(folder: Path, path: Path) -> None:
    """Put the results of a run, and its curves, into one file."""
    found = json.loads((folder / RESULTS).read_text())
    found["curve"] = curve(list(read_log(folder)))
    found["machine"] = describe_machine()
    write_whole(path, (json.dumps(found, indent=1) + "\n").encode())


def curve(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The loss of the batches, a mean of every `WINDOW` steps, and the validation accuracy."""
    steps = [line for line in lines if "split" not in line]
    losses = [
        {
            "step": some[-1]["step"],
            "seconds": round(some[-1]["seconds"], 1),
            "loss": round(mean(line["loss"] for line in some), 4),
        }
        for some in (steps[i : i + WINDOW] for i in range(0, len(steps), WINDOW))
    ]
    validation = [
        {"step": line["step"], "accuracy": round(line["accuracy"], 4)}
        for line in lines
        if line.get("split") == "validation"
    ]
    return {"training": losses, "validation": validation}


def show(data: Path, figures: Path) -> None:
    """Make ``table.md`` and the plots of all runs that are there."""
    from topk_np.runs.plots import plot_swaps, plot_training

    found = [json.loads(path.read_text()) for path in sorted(data.glob("*.json"))]
    order = [settings.name for settings in plan()]
    found.sort(key=lambda run: order.index(Settings(**run["settings"]).name))
    tables = []
    for task in dict.fromkeys(run["settings"]["task"] for run in found):
        runs = [run for run in found if run["settings"]["task"] == task]
        tables.append(table(runs))
        first = {name_of(run): run for run in runs if run["settings"]["seed"] == 0}
        title, baselines = runs[0]["task"], runs[0]["baselines"]
        lines = {
            name: run["curve"]["training"]
            + [{**line, "split": "validation"} for line in run["curve"]["validation"]]
            for name, run in first.items()
        }
        plot_training(figures / f"train_{task}.png", title, lines, baselines)
        swaps = {name: run["swapped"] for name, run in first.items() if run["swapped"]}
        plot_swaps(figures / f"train_{task}_k.png", title, swaps, baselines)
    write_whole(data / "table.md", ("\n\n".join(tables) + "\n").encode())


def table(runs: Sequence[Run]) -> str:
    """The runs of one task as a table: a line for each method, the mean over its seeds."""
    ks = list(dict.fromkeys(k for run in runs for k in run["swapped"]))
    head = ["", "accuracy", "seeds", *(f"at k = {k}" if k != "dense" else k for k in ks)]
    lines = [
        f"**{runs[0]['task']}**, {runs[0]['steps']:,} steps, "
        f"{runs[0]['test_examples']:,} test examples\n",
        _row([*head, "CPU seconds", "peak MiB"]),
        _row(["---"] * (len(head) + 2)),
    ]
    for name, accuracy in runs[0]["baselines"].items():
        lines.append(_row([f"{name}, no model", f"{accuracy:.3f}", *[""] * len(head)]))
    for name in dict.fromkeys(map(name_of, runs)):
        own = [run for run in runs if name_of(run) == name]
        swapped = [_spread([run["swapped"][k] for run in own if k in run["swapped"]]) for k in ks]
        cpu = mean(run["cpu_seconds"] for run in own)
        memory = mean(run["peak_memory"] for run in own) / MEBI
        accuracy = _spread([run["test_accuracy"] for run in own])
        lines.append(
            _row([name, accuracy, str(len(own)), *swapped, f"{cpu:,.0f}", f"{memory:,.0f}"])
        )
    return "\n".join(lines)


def name_of(run: Run) -> str:
    """The method of a run in words."""
    return method(Settings(**run["settings"]))


def _spread(numbers: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are several."""
    if not numbers:
        return ""
    spread = f" ± {stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):.3f}{spread}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
