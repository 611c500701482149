"""The documentation has every public name, and what is made from the code is as it makes it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import topk_np
from tests.pages import DOCS, NOTEBOOKS, run_code, shown
from topk_np import baselines, dask, diagnostics, layers, models, qa, tasks, testing, training
from topk_np.models import bert, decode, llama, t5, t5_generate
from topk_np.tasks import listops, pixels, reviews, text

MODULES = (
    *(baselines, dask, diagnostics, layers, models, qa, tasks, testing, training),
    *(bert, decode, llama, t5, t5_generate),
    *(listops, pixels, reviews, text),
)
# The last two cannot be imported where PyTorch or JAX is missing.
ELSEWHERE = (
    "topk_np.activations.Activation",
    "topk_np.activations.elementwise",
    "topk_np.interop.jax.as_jax",
    "topk_np.interop.torch.as_torch",
)
# Those that need PyTorch, Dask's cluster or Hypothesis are run beside the tests of these.
RUNNABLE = (
    "index",
    *(f"howto/{name}" for name in ("activation", "blocks", "engine", "family", "option")),
    "howto/long_sequences",
)


@pytest.mark.parametrize("name", ["options", "errors"])
def test_what_is_made_from_the_code_is_as_the_code_makes_it(name: str) -> None:
    made = runpy.run_path(str(DOCS / "tables" / f"{name}.py"))
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page == made["page"](), f"make it again: python docs/tables/{name}.py"


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = DOCS / f"{name}.md"
    run_code(path, {"__name__": path.stem})
    assert capsys.readouterr().out.splitlines() == shown(path)


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^   (topk_np\.[\w.]+)$", page, re.MULTILINE)
    public = {f"topk_np.{name}" for name in topk_np.__all__} | {*ELSEWHERE}
    for module in MODULES:
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    assert sorted(listed) == sorted(public)


def test_notebook_4_ends_with_the_files_of_the_algorithm_and_their_sizes() -> None:
    text = (NOTEBOOKS / "4-top-k-backward.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\d\. `topk_np/(\S+)` \((\d+)", text, re.MULTILINE)
    package = Path(topk_np.__file__).parent
    lengths = [len((package / file).read_text(encoding="utf-8").splitlines()) for file, _ in listed]
    assert [int(said) for _, said in listed] == pytest.approx(lengths, rel=0.1)
    assert len(listed) == 5
    assert sum(lengths) <= 750


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_every_notebook_says_what_it_is_for_and_ends_with_exercises(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    parts = ("What you will do.", "What you will learn.", "What you need.", 'BACKEND = "numpy"')
    places = [text.index(part) for part in (*parts, "## Exercises", "### Solutions")]
    assert places == sorted(places)
    assert path.stem in (DOCS / "index.md").read_text(encoding="utf-8")
