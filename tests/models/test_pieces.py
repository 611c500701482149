"""SentencePiece models, made for the test."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tests.qa.models import t5_folder
from topk_np.models import load_model
from topk_np.models.tokenizers import FileTokenizer, PieceTokenizer

TEXT = "the path of a graph, and the theme of that"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 70 pieces, of bytes some, whose ids of markers are those of T5."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, "what is the length of that path?"]),
        model_writer=made,
        vocab_size=290,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "spiece.model"
    path.write_bytes(made.getvalue())
    return path


def test_a_text_ends_with_the_token_that_ends_it_and_comes_back(path: Path) -> None:
    tokenizer = PieceTokenizer(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.tolist() == [*reference.EncodeAsIds(TEXT), 1]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode([0, *ids[:-1], 1, 0, 32_099]) == TEXT


@pytest.mark.parametrize("text", [TEXT, "path é 漢字 🙂 the", ""])
def test_pieces_of_text_end_between_characters(path: Path, text: str) -> None:
    tokenizer = PieceTokenizer(path)
    ids = tokenizer.encode(text)
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert all(pieces)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    if text == TEXT:
        assert len(pieces) > 3


def test_a_character_that_is_cut_off_is_shown_as_such_at_the_end(path: Path) -> None:
    tokenizer = PieceTokenizer(path)
    cut = tokenizer.encode("a 漢")[:-2]
    pieces = list(tokenizer.stream(cut))
    assert "".join(pieces) == tokenizer.decode(cut)
    assert pieces[-1].endswith("\N{REPLACEMENT CHARACTER}")


def test_a_folder_with_pieces_alone_has_that_tokenizer(path: Path, tmp_path: Path) -> None:
    folder = t5_folder(tmp_path, tokenizer=False)
    (folder / "spiece.model").write_bytes(path.read_bytes())
    tokenizer = load_model(folder).tokenizer
    assert isinstance(tokenizer, PieceTokenizer)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert isinstance(load_model(t5_folder(tmp_path)).tokenizer, FileTokenizer)


def test_a_folder_is_loaded_without_the_package_until_text_is_to_be_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = t5_folder(tmp_path, tokenizer=False)
    (folder / "spiece.model").write_bytes(path.read_bytes())
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    model = load_model(folder)
    with pytest.raises(ModuleNotFoundError):
        model.tokenizer.encode(TEXT)


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"spiece\.model is not a SentencePiece model"):
        PieceTokenizer(path).encode("a")
