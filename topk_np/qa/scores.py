"""
Exact match and F1 of an answer, as SQuAD 1.1 has them.

Rajpurkar, Zhang, Lopyrev and Liang, *SQuAD: 100,000+ Questions for Machine Comprehension of Text*,
2016, section 6.1, arXiv:1606.05250.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(text: str, /) -> str:
    """
    What is compared of a text: its words in lower case, without punctuation and articles.

    Examples
    --------
    >>> from topk_np.qa import normalized
    >>> normalized("  The U.S.A., an  ally ")
    'usa ally'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(given: str, right: Sequence[str], /) -> float:
    """
    Whether an answer is one of the right ones: 1 or 0.

    Parameters
    ----------
    given : str
        The answer.
    right : sequence of str
        All answers that are right, at least one.

    Examples
    --------
    >>> from topk_np.qa import exact_match
    >>> exact_match("the Denver Broncos.", ["Broncos", "Denver Broncos"])
    1.0
    """
    return float(any(normalized(given) == normalized(one) for one in right))


def f1(given: str, right: Sequence[str], /) -> float:
    """
    How many words an answer shares with the right one that is closest.

    Parameters
    ----------
    given : str
        The answer.
    right : sequence of str
        All answers that are right, at least one.

    Returns
    -------
    float
        The harmonic mean of precision and recall of the words, each as often as it is there; 0 if
        none is shared, even if there are none at all.

    Examples
    --------
    >>> from topk_np.qa import f1
    >>> f1("in March 1906", ["1906"])
    0.5
    """
    return max(_f1(normalized(given).split(), normalized(one).split()) for one in right)


def _f1(given: list[str], right: list[str]) -> float:
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right)) if shared else 0.0
