"""Byte-level BPE on a tiny vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tests.models.tiny import END, KINDS, MERGES, TOKENS
from topk_np.models.tokenizers import ByteBPE


def tokenizer(**options: Any) -> ByteBPE:
    """The tiny tokenizer."""
    options = {"kinds": KINDS, "split": "smollm", "unknown": 0, **options}
    return ByteBPE(TOKENS, MERGES, **options)


def every_byte() -> ByteBPE:
    """A tokenizer of GPT-2's 256 bytes, of some pairs of them, a marker and a foreign token."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    pairs = [a + b for a in "âðÃ" for b in "ŁĤ©"]
    tokens = [*sorted(letters), *pairs, END, "▁€"]
    kinds = [1] * (len(tokens) - 2) + [3, 4]
    return ByteBPE(tokens, [(pair[0], pair[1]) for pair in pairs], kinds=kinds)


BYTES = every_byte()
IDS = 256 + 9 + 2


def spelled(ids: np.ndarray) -> list[str]:
    """The tokens of the ids."""
    return [TOKENS[i] for i in ids]


def test_merges_apply_in_order_within_words() -> None:
    ids = tokenizer().encode("the path\nthe the")
    assert ids.dtype == np.int32
    assert spelled(ids) == ["the", "Ġ", "p", "a", "th", "Ċ", "the", "Ġthe"]


@pytest.mark.parametrize("text", ["", " ", "the  end.\n\n  12", "a'll be, (there)"])
def test_decoding_gives_the_text_back(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_smollm_splits_digits_that_other_rules_may_merge() -> None:
    tokens, merges = [*TOKENS, "12"], [*MERGES, ("1", "2")]
    for split, expected in (("smollm", ["1", "2"]), ("gpt-2", ["12"]), ("default", ["12"])):
        ids = ByteBPE(tokens, merges, split=split, unknown=0).encode("12")
        assert [tokens[i] for i in ids] == expected


def test_markers_are_matched_whole_and_left_out_when_decoding() -> None:
    ids = tokenizer().encode(f"the{END}the")
    assert spelled(ids) == ["the", END, "the"]
    assert tokenizer().decode(ids) == "thethe"


def test_bytes_that_the_vocabulary_lacks_become_the_unknown_token() -> None:
    assert spelled(tokenizer().encode("aéa")) == ["a", END, END, "a"]


def test_without_an_unknown_token_no_byte_is_dropped_in_silence() -> None:
    with pytest.raises(ValueError, match="text has bytes that the vocabulary lacks"):
        tokenizer(unknown=None).encode("aéa")
    assert spelled(tokenizer(unknown=None).encode("aa")) == ["a", "a"]


def test_a_token_can_be_put_before_every_text() -> None:
    assert spelled(tokenizer(first=0).encode("the")) == [END, "the"]
    assert spelled(tokenizer(first=0).encode("")) == [END]
    with pytest.raises(ValueError, match=r"first must be the id of one of \d+ tokens, got -1"):
        tokenizer(first=-1)


@given(ids=st.lists(st.integers(0, IDS + 1), max_size=9))
def test_a_stream_is_the_decoded_text_whatever_its_bytes(ids: list[int]) -> None:
    pieces = list(BYTES.stream(ids))
    assert "".join(pieces) == BYTES.decode(ids)
    assert "" not in pieces


def test_a_stream_gives_what_is_known_before_the_next_token_comes() -> None:
    ids = BYTES.encode("a€b").tolist()
    assert len(ids) == 4  # the sign of the euro is two of them
    asked: list[int] = []

    def coming() -> Iterator[int]:
        for i in ids:
            asked.append(i)
            yield i

    got = [(piece, len(asked)) for piece in BYTES.stream(coming())]
    assert got == [("a", 1), ("€", 3), ("b", 4)]


TEXT = "In 1234567 steps, don't (EVER)\n\n  I'LL: é٣"
PIECES = {
    "default": "In| |123|456|7| steps|,| don|'|t| |(|EVER|)|\n\n | I|'|LL|:| é|٣",
    "gpt-2": "In| 1234567| steps|,| don|'t| (|EVER|)|\n\n | I|'|LL|:| é|٣",
    "llama-bpe": "In| |123|456|7| steps|,| don|'t| (|EVER|)\n\n| | I|'LL|:| é|٣",
    "qwen2": "In| |1|2|3|4|5|6|7| steps|,| don|'t| (|EVER|)\n\n| | I|'LL|:| é|٣",
    "smollm": "In| |1|2|3|4|5|6|7| steps|,| don|'t| (|EVER|)|\n\n | I|'|LL|:| é|٣",
}


@pytest.mark.parametrize("split", PIECES)
def test_text_is_cut_by_the_rule_of_that_name(split: str) -> None:
    cut = tokenizer(split=split)._tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)
    assert [TEXT[start:stop] for _, (start, stop) in cut] == PIECES[split].split("|")


def test_llama_3_takes_a_piece_that_is_a_token_as_it_is() -> None:
    tokens = [*TOKENS, "hello"]  # which no merges lead to
    for split, expected in (("llama-bpe", ["hello"]), ("qwen2", [*"hello"])):
        ids = ByteBPE(tokens, MERGES, split=split, unknown=0).encode("hello")
        assert [tokens[i] for i in ids] == expected


def test_user_defined_tokens_are_matched_whole_and_kept_when_decoding() -> None:
    tokens, kinds = [*TOKENS, "<think>"], [*KINDS, 4]
    made = ByteBPE(tokens, MERGES, kinds=kinds, split="smollm", unknown=0)
    ids = made.encode("a<think>the")
    assert [tokens[i] for i in ids] == ["a", "<think>", "the"]
    assert made.decode(ids) == "".join(made.stream(ids)) == "a<think>the"


def test_an_unknown_split_rule_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"split must be one of default, gpt-2, .*, smollm, got 'tekken'"
    ):
        tokenizer(split="tekken")


def test_merges_must_be_of_tokens() -> None:
    with pytest.raises(ValueError, match="merge 'a' \\+ 'b' is not among the tokens"):
        ByteBPE(TOKENS, [("a", "b")])
