"""The pytest plugin: its fixtures work, and who does not ask for them does not notice it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import _topk_np_pytestplugin as plugin

pytest_plugins = ["pytester"]

SUITE = """
import numpy as np
import pytest


def attention(query, key, value, mask=None):
    scores = query @ key.mT / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return (weights if mask is None else weights * mask) @ value


def fwd(x):
    return x * x, x


def test_passes(check_attention, check_ffn, check_topk):
    assert check_attention(attention, only=["values"], examples=5).passed


def test_fails(check_attention):
    check_attention(attention, only=["mask"])


def test_gradients(check_vjp):
    check_vjp(fwd, lambda x, dout: (2 * x * dout,), np.ones(3))
    with pytest.raises(AssertionError, match="array 0 is wrong"):
        check_vjp(fwd, lambda x, dout: (x * dout,), np.ones(3))


def test_numbers(assert_close):
    assert_close(np.ones(3), np.ones(3))
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(np.ones(3), np.zeros(3))
"""

WITHOUT = """
import sys


class Without:
    def find_spec(name, *rest):
        if name == "hypothesis":
            raise ModuleNotFoundError(name, name=name)


sys.meta_path.insert(0, Without)


def test_it(assert_close):
    pass
"""

APART = """
import sys

import pytest


@pytest.fixture
def check_vjp():
    return "mine"


def test_nothing_is_imported_and_own_fixtures_come_first(check_vjp):
    assert check_vjp == "mine"
    assert not {"hypothesis", "numpy", "topk_np"} & set(sys.modules)
"""


@pytest.fixture
def alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test run with no plugin but ours."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(plugin.__file__).parent))
    return pytester


def run(pytester: pytest.Pytester, text: str) -> pytest.RunResult:
    pytester.makepyfile(text)
    return pytester.runpytest_subprocess("-p", plugin.__name__, "-p", "no:cacheprovider")


def test_the_fixtures_are_what_the_package_offers(alone: pytest.Pytester) -> None:
    ran = run(alone, SUITE)
    ran.assert_outcomes(passed=3, failed=1)
    ran.stdout.fnmatch_lines(["FAILED * mask: A query attends where*", "*AttentionProblem(query=*"])
    ran.stdout.no_fnmatch_line("*_topk_np_pytestplugin.py*")  # no traceback through our code


def test_it_imports_nothing_and_gives_way(alone: pytest.Pytester) -> None:
    run(alone, APART).assert_outcomes(passed=1)


def test_a_missing_hypothesis_is_named_with_its_extra(alone: pytest.Pytester) -> None:
    ran = run(alone, WITHOUT)
    ran.assert_outcomes(errors=1)
    ran.stdout.fnmatch_lines(["*hypothesis is missing: pip install 'topk_np?testing?'*"])


def test_it_is_an_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"topk_np": plugin.__name__}
    files = project["tool"]["hatch"]["build"]["targets"]
    for target in ("wheel", "sdist"):
        assert f"/{plugin.__name__}.py" in files[target]["include"]
