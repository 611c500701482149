"""Texts: those of an archive of the right form, each once."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from topk_np.tasks import MissingDataError, load
from topk_np.tasks.text import ARCHIVE, INNER, SOURCES, text_classification, text_retrieval


def tar(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def test_texts_are_read_once_with_their_source_or_sentiment(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    files = {
        f"hutto_ICWSM_2014/{name}_GroundTruth.txt": "".join(
            f"{i}\t{i - 1.5}\t{source}{i} é\r\n" for i in (0, 1, 2, 3, 3)
        ).encode()
        for source, name in enumerate(SOURCES)
    }
    path.write_bytes(tar({INNER: tar(files)}))
    seen = []
    for label in ("source", "sentiment"):
        task = text_classification(label, path=path, train=10, validation=2, test=4)
        for part in (task.train, task.validation, task.test):
            for tokens, length, found in zip(part.tokens, part.lengths, part.labels, strict=True):
                text = bytes(np.asarray(tokens[:length] - 1, np.uint8)).decode()
                assert found == (int(text[0]) if label == "source" else int(text[1]) > 1)
                seen.append(label + text)
    assert len(seen) == len(set(seen)) == 32
    with pytest.raises(ValueError, match="test must be at most 16, got 17"):
        text_classification(path=path, train=10, validation=2, test=5)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MissingDataError, match="as published"):
        text_classification(path=path)


def test_missing_texts_say_what_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPK_NP_CACHE", str(tmp_path))
    with pytest.raises(MissingDataError, match=r"pip download .* vaderSentiment==2\.5"):
        load("text")
    (tmp_path / ARCHIVE.name).write_bytes(b"something else")
    with pytest.raises(MissingDataError, match="must have the SHA-256"):
        load("retrieval")


def test_halves_belong_together_every_second_time(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    texts = [f"{i:03}{'abcdefgh'[i % 8] * 30}{i:03}" for i in range(40)]
    files = {
        f"hutto_ICWSM_2014/{name}_GroundTruth.txt": "".join(
            f"0\t1\t{text}\n" for text in texts[10 * source : 10 * source + 10]
        ).encode()
        for source, name in enumerate(SOURCES)
    }
    path.write_bytes(tar({INNER: tar(files)}))
    task = text_retrieval(18, path=path, train=21, validation=9, test=10)
    seen = set()
    for part in (task.train, task.validation, task.test):
        assert part.tokens.shape == (len(part), 2, 18)
        numbers = [
            [bytes((half - 1).astype(np.uint8)).decode() for half in pair] for pair in part.tokens
        ]
        together = [int(first[:3] == second[-3:]) for first, second in numbers]
        assert together == part.labels.tolist() == [i % 2 for i in range(len(part))]
        seen |= {first[:3] for first, _ in numbers}
        assert {first[:3] for first, _ in numbers} == {second[-3:] for _, second in numbers}
    assert len(seen) == 40
