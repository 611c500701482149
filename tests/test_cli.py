"""The command line: what it runs, prints and returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import topk_np
from topk_np import fetch
from topk_np.cli import main
from topk_np.studies import demo


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must end with exit code 2 and one line on stderr; return the line."""
    try:
        code: Any = main(arguments)
    except SystemExit as error:
        code = error.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err.rstrip("\n")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "topk_np", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"topk_np {topk_np.__version__}\n"


def test_help_names_the_commands_without_heavy_imports() -> None:
    code = (
        "import sys; from topk_np.cli import main\n"
        "try: main(['demo', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'tqdm', 'gguf', 'tokenizers', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--tokens" in done.stdout


def test_fetch_prints_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda name: Path("cache") / name)
    assert main(["fetch", "smollm2"]) == 0
    assert capsys.readouterr().out == f"{Path('cache') / 'smollm2'}\n"


@pytest.mark.parametrize("error", [fetch.FetchError("no network"), ValueError("no network")])
def test_fetch_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def failing(name: str) -> Path:
        raise error

    monkeypatch.setattr(fetch, "fetch", failing)
    assert fails(capsys, "fetch", "smollm2") == "topk_np fetch: error: no network"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--k", "0"], "topk_np demo: error: argument --k: must be at least 1, got 0"),
        (["demo", "--k", "8", "x"], "argument --k: must be an integer, got 'x'"),
        (["demo", "--tokens", "-3"], "argument --tokens: must be at least 1, got -3"),
        (["demo", "--k"], "topk_np demo: error: argument --k: expected at least one argument"),
        (["race"], "topk_np: error: argument COMMAND: invalid choice: 'race'"),
        (["train", "chess"], "topk_np train: error: argument TASK: invalid choice: 'chess'"),
        ([], "topk_np: error: the following arguments are required: COMMAND"),
    ],
)
def test_wrong_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, *arguments)


@pytest.mark.parametrize("package", ["gguf", "tokenizers", "tqdm", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    def failing(**options: Any) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(demo, "run", failing)
    assert fails(capsys, "demo") == (
        f"topk_np demo: error: the package {package} is missing: pip install 'topk_np[demo]'"
    )


def test_other_missing_modules_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**options: Any) -> None:
        raise ModuleNotFoundError("No module named 'abc2'", name="abc2")

    monkeypatch.setattr(demo, "run", failing)
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


def test_an_interrupt_ends_quietly_with_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert main(["demo"]) == 130
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
