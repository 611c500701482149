"""``make mutants``: run a part of the suite on hundreds of mutants of the package's core."""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cosmic_ray.commands
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

from tests.mutants.places import sample
from tests.mutants.report import changed, survivors, write_report
from tests.mutants.suite import CORE, passes, whole_suite_passes

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
SESSION = BUILD / "session.sqlite"
SOURCES = BUILD / "sources"  # the package as it was when the session began
WORK = BUILD / "work"  # what gets mutated, in place


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the session, or begin one; write the report when nothing is left to do."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants of a new session (300)")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn from (0)")
    parser.add_argument("--fresh", action="store_true", help="begin anew, of the code as it is")
    parser.add_argument("--again", action="store_true", help="try again what survived")
    arguments = parser.parse_args(argv)

    if arguments.fresh or not SESSION.exists():
        _begin(arguments.count, arguments.seed)
    _lay_out()
    os.chdir(WORK)
    with use_db(SESSION, WorkDB.Mode.open) as session:
        _run(session, again=arguments.again)
        write_report(session, BUILD / "mutants.json")


def _begin(count: int, seed: int) -> None:
    """Begin a session with the package as it is."""
    shutil.rmtree(BUILD, ignore_errors=True)
    _copy(ROOT / "topk_np", SOURCES / "topk_np")
    os.chdir(SOURCES)
    with use_db(SESSION) as session:
        cosmic_ray.commands.init([Path(f"topk_np/{name}.py") for name in CORE], session, {})
        chosen = sample(session.work_items, count, seed)
        session.clear()
        session.add_work_items(chosen)


def _lay_out() -> None:
    """Make what gets mutated: the session's package, whole again, and the tests of today."""
    shutil.rmtree(WORK, ignore_errors=True)
    _copy(SOURCES / "topk_np", WORK / "topk_np")
    _copy(ROOT / "tests", WORK / "tests")
    for name in ("pyproject.toml", "_topk_np_pytestplugin.py"):
        shutil.copy(ROOT / name, WORK)
    # Compiled once; a mutant has another hash, so that it is compiled in memory.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(WORK, quiet=1, invalidation_mode=mode)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "cupy_cpu"))


def _run(session: WorkDB, *, again: bool) -> None:
    """Test what has not been tested, or what survived; every result is kept as soon as it is in."""
    items = session.pending_work_items
    if again:
        items = (*survivors(session), *items)
    if items and not whole_suite_passes():
        sys.exit("the suite fails without any mutation")
    for number, item in enumerate(items, start=1):
        (mutation,) = item.mutations
        began = time.perf_counter()
        result = _test(mutation)
        session.set_result(item.job_id, result)
        print(
            f"{number:4} of {len(items)}  {'killed  ' if result.is_killed else 'SURVIVED'} "
            f"{time.perf_counter() - began:5.1f} s  {mutation.module_path}:{mutation.start_pos[0]}",
            flush=True,
        )


def _test(mutation: MutationSpec) -> WorkResult:
    """Run the suite on one mutant."""
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    path = mutation.module_path
    with use_mutation(path, operator, mutation.occurrence) as (code, mutated):
        assert mutated is not None, f"nothing to mutate: {mutation}"
        survived = passes(path)
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL,
        test_outcome=TestOutcome.SURVIVED if survived else TestOutcome.KILLED,
        diff=changed(code, mutated),
    )


if __name__ == "__main__":
    main()
