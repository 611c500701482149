"""What ``python -m topk_np experiment`` does."""

from __future__ import annotations

import sys
from pathlib import Path

from topk_np._process import UserError, cpu_seconds, describe_machine, make_folder, write_whole
from topk_np.studies.names import Experiment, Prepared, find
from topk_np.studies.records import Record, load_record, open_record


def run(
    name: str,
    /,
    *,
    model: str | None = None,
    only: str = "",
    show: bool = False,
    out: Path,
    plots: Path | None = None,
) -> Record:
    """
    Measure what is missing, print the tables, and save them, the plots and the points.

    Parameters
    ----------
    name : str
        One of `EXPERIMENTS`.
    model : str, optional
        A model to measure instead of the packaged one: its name or path.
    only : str
        Measure the settings alone whose words hold this.
    show : bool
        Measure nothing: make tables and plots of the points there are.
    out, plots : Path
        Where ``NAME.json`` and ``NAME.md`` go, and the plots; `plots` is `out` by default.

    Returns
    -------
    Record
        With the points of this run and of those before.

    Raises
    ------
    UserError, ModelError, FetchError, MissingDataError
        With a message of one line.
    KeyboardInterrupt
        After Ctrl-C; the points that were measured are in the file.
    """
    import matplotlib as mpl
    import tqdm  # noqa: F401  not only when all is loaded

    experiment, path = find(name), out / f"{name}.json"
    plots = out if plots is None else plots
    if show:
        if not path.exists():
            raise UserError(f"--show: there is no {path}")
        record = load_record(path)
        if record.experiment != name or not record.points:
            raise UserError(f"--show: {path} has no points of {name}")
    else:
        prepared = experiment.prepare(model)
        record = open_record(path, name, prepared.about)
        make_folder("--out", out)
        record = _measure(experiment, prepared, record, path, only)

    tables = experiment.table(record.points)
    print(tables)
    write_whole(out / f"{name}.md", (tables + "\n").encode())
    make_folder("--plots", plots)
    from topk_np._plots import STYLE

    with mpl.rc_context(STYLE):
        for stem, figure in experiment.draw(record.points).items():
            figure.savefig(plots / f"{stem}.png", dpi=130)
    print(f"\nPoints and tables: {out}; plots: {plots}")
    return record


def _measure(
    experiment: Experiment, prepared: Prepared, record: Record, path: Path, only: str
) -> Record:
    """Measure what the record lacks; the file has each point as soon as it is known."""
    from tqdm import tqdm

    wanted = [setting for setting in prepared.settings if only in experiment.label(setting)]
    if not wanted:
        raise UserError(f"--only {only}: no setting's words hold this")
    missing = [setting for setting in wanted if not record.has(setting)]
    steps = sum(map(prepared.steps, missing))
    machine = describe_machine()
    with tqdm(total=steps, desc=record.experiment, file=sys.stderr, leave=False) as bar:
        for setting in missing:
            bar.set_postfix_str(experiment.label(setting))
            start = cpu_seconds()
            result = prepared.measure(setting, bar.update)
            record = record.with_point(setting, result, cpu_seconds() - start, machine)
            record = record.in_order(prepared.settings)
            record.save(path)
    return record
