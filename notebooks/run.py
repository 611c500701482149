"""
Run the notebooks, all or those that are named, and fail on the first error in a cell.

What they show is kept in docs/_build, where the documentation takes it from.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jupytext
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
BACKEND = 'BACKEND = "numpy"'  # the line of each notebook that chooses it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="*", type=Path, default=[*notebooks(), *guides()])
    parser.add_argument("--backend", default="numpy", choices=("numpy", "cupy"))
    options = parser.parse_args()
    # Small products gain nothing from threads, and on a busy machine wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for path in options.notebook:
        start = time.perf_counter()
        run(path, options.backend)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


def notebooks() -> list[Path]:
    """Return the notebooks that teach, in their order."""
    return sorted(HERE.glob("*.md"), key=lambda path: int(path.stem.partition("-")[0]))


def guides() -> list[Path]:
    """Pages of the documentation that are notebooks too."""
    pages = sorted((DOCS / "howto").glob("*.md"))
    return [page for page in pages if page.read_text(encoding="utf-8").startswith("---\njupytext")]


def run(path: Path, backend: str) -> None:
    """Run one notebook in a kernel of its own, of this very Python."""
    notebook = jupytext.read(path)
    cells = [cell for cell in notebook.cells if cell.source.startswith(BACKEND)]
    if len(cells) != 1 and path.resolve() in notebooks():
        raise SystemExit(f"{path.name} must have one cell that begins with {BACKEND}")
    for cell in cells:
        cell.source = cell.source.replace(BACKEND, f'BACKEND = "{backend}"')
    # Sockets in files, as those of TCP could be listened to.
    config = Config(AsyncKernelManager={"transport": "ipc"})
    # Times would be among the metadata of the cells, by which the notebook is found again.
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=300, record_timing=False, config=config
    )
    client.execute()
    cache = get_cache(DOCS / "_build" / ".jupyter_cache")
    cache.cache_notebook_bundle(CacheBundleIn(notebook, str(path)), overwrite=True)


if __name__ == "__main__":
    main()
