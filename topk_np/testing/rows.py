"""Queries or keys as they are drawn: a few bytes each, of which all about them is made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

WHOLE = np.array([0, 1, -1, 2, -2])
WIDEST = 4  # D; of the other fields, V is at most 3
FIELDS = {"vector": slice(0, 4), "value": slice(4, 7), "hides": slice(7, 8), "bias": slice(8, 9)}
BYTES = 9  # for each head


@dataclass(frozen=True)
class Rows:
    """The rows of all heads, which can be left out one by one without a change to the others."""

    drawn: np.ndarray
    """(rows, bytes) uint8"""
    lead: tuple[int, ...]
    normal: bool = False
    """Whether their numbers are normal ones, else small whole ones."""

    def numbers(self, field: str, width: int) -> np.ndarray:
        """(..., rows, width) float64: numbers made of one field."""
        if not self.normal:
            return np.asarray(WHOLE[self.bytes(field, width) % len(WHOLE)], np.float64)
        place = list(FIELDS).index(field)
        shape = (*self.lead, width)
        rows = [np.random.default_rng([place, *row]).standard_normal(shape) for row in self.drawn]
        return np.moveaxis(np.asarray(rows).reshape(len(rows), *shape), 0, -2)

    def bytes(self, field: str, width: int = 1) -> np.ndarray:
        """(..., rows, width): the bytes of one field."""
        count, heads = len(self.drawn), math.prod(self.lead)
        cut = self.drawn.reshape(count, self.drawn.shape[1] // BYTES, BYTES)[
            :, :heads, FIELDS[field]
        ][..., :width]
        return np.moveaxis(cut.reshape(count, *self.lead, width), 0, -2)


@st.composite
def rows(draw: st.DrawFn, lead: tuple[int, ...], least: int, most: int, *, sets: int) -> list[Rows]:
    """One or two sets of as many rows, of heads along axes that are at most 2 long."""
    size = BYTES * 2 ** max(len(lead), 2)
    one = st.binary(min_size=sets * size, max_size=sets * size)
    drawn = draw(st.lists(one, min_size=least, max_size=most))
    table = np.frombuffer(b"".join(drawn), np.uint8).reshape(len(drawn), sets, size)
    return [Rows(table[:, i], lead) for i in range(sets)]


def hidden(queries: Rows, keys: Rows) -> np.ndarray:
    """
    Boolean (..., Q, N): some of the pairs.

    Of three groups of queries and three of keys, that a row may belong to any of, those pairs that
    are in groups of the same number.
    """
    of_queries, of_keys = queries.bytes("hides") % 8, keys.bytes("hides") % 8
    return np.asarray((of_queries & of_keys.mT) != 0)


def biases(queries: Rows, keys: Rows) -> np.ndarray:
    """(..., Q, N): small whole numbers."""
    index = queries.bytes("bias").astype(int) + keys.bytes("bias").mT
    return np.asarray(WHOLE[index % len(WHOLE)], np.float64)
