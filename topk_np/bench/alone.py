"""
One run of one peer in a process of its own: how long it takes and how much memory.

``python -m topk_np.bench.alone JOB`` is that process. What counts is by how much its peak grows
once the inputs are made and a small problem has loaded whatever is loaded on first use.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from topk_np.bench.cases import Case, make_inputs
from topk_np.bench.peers import PEERS, Peer

WARM_UP = 128  # queries and keys of the small problem
START = 60  # seconds that starting the process, imports and inputs may take


class Alone(NamedTuple):
    """What one run took."""

    seconds: float
    memory: int
    """Bytes beyond the inputs, at the peak of the whole process."""


def run_alone(peer: Peer, case: Case, mode: str, limit: float) -> Alone | str:
    """Run in a new process; a sentence if that fails or takes more than `limit` seconds."""
    job = json.dumps({"peer": peer.name, "case": asdict(case), "mode": mode})
    taken = run_process("topk_np.bench.alone", job, limit)
    return taken if isinstance(taken, str) else Alone(**taken)


def run_process(module: str, job: str, limit: float) -> dict[str, Any] | str:
    """What ``python -m module job`` prints as JSON; a sentence if it fails or takes too long."""
    command = [sys.executable, "-m", module, job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + START)
    except subprocess.TimeoutExpired:
        return f"took longer than {limit:g} s"
    if done.returncode:
        words = done.stderr.strip().splitlines()
        return f"failed: {words[-1] if words else f'exit code {done.returncode}'}"
    taken: dict[str, Any] = json.loads(done.stdout)
    return taken


def main(job: str, /) -> None:
    """Run what `job` says and print what it took, as JSON."""
    task = json.loads(job)
    peer, case, mode = PEERS[task["peer"]], Case(**task["case"]), task["mode"]
    importlib.import_module("scipy.sparse")  # which topk_np loads when a problem is large enough
    inputs = make_inputs(case)
    run = peer.build(case, inputs).of(mode)
    small = case.clipped(WARM_UP)
    peer.build(small, make_inputs(small)).of(mode)()
    before, start = peak_memory(), perf_counter()
    results = run()
    seconds, after = perf_counter() - start, peak_memory()
    del results  # only now: outputs count
    print(json.dumps(Alone(seconds, after - before)._asdict()))


def peak_memory() -> int:
    """The most bytes that this process has held in memory at once."""
    # Linux hands the ru_maxrss of a parent down to its child: a large parent would hide the peak.
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(sys.argv[1])
