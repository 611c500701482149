"""What is installed: the package and its plugin, whole, and nothing else; see `make test-dist`."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

import pytest

import topk_np

ROOT = Path(__file__).parents[1]
SEMANTIC = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[\w.-]+)?(\+[\w.-]+)?"


@pytest.fixture(scope="module")
def installed() -> list[PackagePath]:
    """The files of an installed wheel."""
    try:
        files = distribution("topk_np").files or []
    except PackageNotFoundError:
        files = []
    # `make test-dist`, which `.ci/run` calls, installs one, so that these tests run there.
    if PackagePath("topk_np/__init__.py") not in files:
        pytest.skip("no wheel is installed: the package lies in its source tree")
    return files


def test_the_version_is_semantic_and_the_changelog_has_it() -> None:
    assert re.fullmatch(SEMANTIC, topk_np.__version__)
    headings = re.findall(
        r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert headings[0] == topk_np.__version__


def test_an_installed_wheel_holds_the_package_and_its_plugin_alone(
    installed: list[PackagePath],
) -> None:
    found = distribution("topk_np")
    assert found.version == topk_np.__version__
    top = {file.parts[0] for file in installed if file.suffix != ".pyc" and file.parts[0] != ".."}
    assert top == {"topk_np", "_topk_np_pytestplugin.py", f"topk_np-{found.version}.dist-info"}
    assert Path(topk_np.__file__) == Path(str(found.locate_file("topk_np/__init__.py")))


def test_an_installed_wheel_has_what_is_no_python(installed: list[PackagePath]) -> None:
    others = {file.as_posix() for file in installed if file.suffix not in (".py", ".pyc")}
    kernels = ("common.cuh", "hide.cu", "products.cu", "select.cu", "softmax.cu")
    assert "topk_np/py.typed" in others
    assert {name for name in others if "/kernels/" in name} == {
        f"topk_np/kernels/cuda/{name}" for name in kernels
    }
    assert any(name.endswith("licenses/LICENSE") for name in others)
