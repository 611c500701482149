"""Exact match and F1, on examples worked out by hand."""

from __future__ import annotations

import pytest

from topk_np.qa import exact_match, f1, normalized


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Cat", "cat"),
        ("an Apple a day", "apple day"),
        ("theatre and another", "theatre and another"),
        ("16,000 rpm!", "16000 rpm"),
        ("it's\tthe\nend", "its end"),
        ("a.the", "athe"),  # punctuation goes first, so that no article is left
        ("“quoted”", "“quoted”"),  # ASCII's punctuation only
        ("The", ""),
    ],
)
def test_texts_are_compared_by_their_words(text: str, words: str) -> None:
    assert normalized(text) == words


@pytest.mark.parametrize(
    ("given", "right", "exact", "shared"),
    [
        ("Denver Broncos", ["the Denver Broncos"], 1.0, 1.0),
        ("Broncos", ["Denver Broncos"], 0.0, 2 / 3),
        ("Broncos", ["Denver Broncos", "broncos."], 1.0, 1.0),
        ("red red blue", ["red blue blue"], 0.0, 2 / 3),  # each as often as it is in both
        ("red red", ["red"], 0.0, 2 / 3),
        ("green", ["red", "blue"], 0.0, 0.0),
        ("", ["a"], 1.0, 0.0),  # nothing is the same as nothing, but no word is shared
        ("one two three four", ["four x", "one two"], 0.0, 2 / 3),
    ],
)
def test_the_closest_right_answer_counts(
    given: str, right: list[str], exact: float, shared: float
) -> None:
    assert exact_match(given, right) == exact
    assert f1(given, right) == pytest.approx(shared)
