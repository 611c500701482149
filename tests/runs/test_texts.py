"""Texts to train on and texts held out: whole documents, without a paragraph in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from topk_np._process import UserError
from topk_np.runs.language import HELD_OUT, TESTED, Texts, documents, read_texts, split


class Letters:
    """A token a character."""

    def encode(self, text: str) -> np.ndarray:
        return np.asarray([ord(letter) for letter in text], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        yield from map(chr, ids)


def paragraphs(text: str) -> set[str]:
    return {" ".join(part.split()) for part in text.split("\n\n") if part.strip()}


def test_the_documentation_is_split_by_topics_that_have_no_paragraph_in_common() -> None:
    topics = documents([])
    training, held_out = split(topics)
    assert not paragraphs(training) & paragraphs(held_out)
    whole = sum(map(len, topics.values()))
    assert HELD_OUT * whole <= len(held_out) < 2 * HELD_OUT * whole
    assert len(training) > 0.7 * whole
    whole_topics = [text for text in topics.values() if paragraphs(text) <= paragraphs(held_out)]
    assert len(whole_topics) >= 3


def test_a_paragraph_of_a_held_out_document_is_left_out_of_the_others_however_broken() -> None:
    texts = {name: f"{name} alone\n\nin\n  common\n\n{name} too" for name in "abcdefgh"}
    training, held_out = split(texts)
    assert "common" in held_out
    assert "common" not in training
    names = {name for name in texts if f"{name} alone" in held_out}
    assert names
    assert all((f"{name} too" in training) == (name not in names) for name in texts)


def test_the_same_documents_are_held_out_every_time_and_not_all_of_them() -> None:
    texts = {"one": "1", "two": "22"}
    assert split(texts) == split(dict(reversed(texts.items())))
    assert all(split(texts))


def test_a_single_file_is_held_out_from_its_last_paragraphs_on(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"paragraph {i:02}" for i in range(40)))
    texts = read_texts(Letters(), [path], 8)
    training, held_out = (Letters().decode(tokens) for tokens in texts)
    numbers = [sorted(int(part[-2:]) for part in paragraphs(t)) for t in (training, held_out)]
    assert numbers == [list(range(36)), list(range(36, 40))]


def test_a_batch_is_drawn_from_the_training_text_by_seed_and_step_alone() -> None:
    texts = Texts(np.arange(100), np.arange(100, 150))
    batch = texts.batch(6, 10, seed=1, step=2)
    assert np.array_equal(batch, texts.batch(6, 10, seed=1, step=2))
    assert not np.array_equal(batch, texts.batch(6, 10, seed=1, step=3))
    assert not np.array_equal(batch, texts.batch(6, 10, seed=2, step=2))
    assert np.array_equal(batch - batch[:, :1], np.tile(np.arange(10), (6, 1)))
    starts = {int(row[0]) for step in range(200) for row in texts.batch(6, 10, seed=0, step=step)}
    assert starts == set(range(91))


def test_tests_are_the_held_out_text_in_order_up_to_a_limit() -> None:
    assert Texts(np.arange(9), np.arange(25)).tests(10).tolist() == [
        list(range(10)),
        list(range(10, 20)),
    ]
    assert Texts(np.arange(9), np.arange(2 * TESTED)).tests(1000).shape == (TESTED // 1000, 1000)
    assert Texts(np.arange(9), np.arange(3 * TESTED)).tests(2 * TESTED).shape == (1, 2 * TESTED)


def test_what_cannot_be_read_or_is_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--text .*nothing: No such file"):
        read_texts(Letters(), [tmp_path / "nothing"], 4)
    path = tmp_path / "text"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"--text .* is not UTF-8 text"):
        read_texts(Letters(), [path], 4)
    path.write_text("\n\n".join(["words"] * 5 + ["other"]))
    with pytest.raises(UserError, match=r"the part that is .* must have at least --length 99 tok"):
        read_texts(Letters(), [path], 99)
