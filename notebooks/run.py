"""Run the notebooks, all or those that are named, and fail on the first error in a cell."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from traitlets.config import Config

HERE = Path(__file__).parent
BACKEND = 'BACKEND = "numpy"'  # the line of each notebook that chooses it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="*", type=Path, default=sorted(HERE.glob("*.md")))
    parser.add_argument("--backend", default="numpy", choices=("numpy", "cupy"))
    options = parser.parse_args()
    # Small products gain nothing from threads, and on a busy machine wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for path in options.notebook:
        start = time.perf_counter()
        run(path, options.backend)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


def run(path: Path, backend: str) -> None:
    """Run one notebook in a kernel of its own, of this very Python."""
    notebook = jupytext.read(path)
    cells = [cell for cell in notebook.cells if cell.source.startswith(BACKEND)]
    if len(cells) != 1:
        raise SystemExit(f"{path.name} must have one cell that begins with {BACKEND}")
    cells[0].source = f'BACKEND = "{backend}"'
    # Sockets in files, as those of TCP could be listened to.
    config = Config(AsyncKernelManager={"transport": "ipc"})
    NotebookClient(notebook, kernel_name="python3", timeout=300, config=config).execute()


if __name__ == "__main__":
    main()
