"""The best that were found in blocks of columns, in matrices with a slot for each."""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace
from topk_np.kernels import engine


class Finds:
    """The k best of each row of the blocks that were seen so far."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._found: list[list[Array]] = []  # blocks of [values, indices, *others], all (C, W)
        self.waiting: float = 0
        """Slots of a row that were found since the last merge."""

    def add(self, scores: Array, start: int, floor: Array | None, *others: Array) -> None:
        """
        Find the k best of a block (C, n) that starts at column `start`.

        If a `floor` (C,) is given, of what exceeds it. `others` are kept at the same places.
        """
        xp = array_namespace(scores)
        kernels = engine(xp)
        if floor is None:
            values, indices, _ = kernels.select(scores, self._k)
        else:
            values, indices, _ = kernels.select_above(scores, self._k, floor)
        kept = [kernels.take_slots(other, indices) for other in others]
        self._found.append([values, xp.where(indices < 0, indices, indices + start), *kept])
        self.waiting += values.shape[1]

    def merge(self) -> list[Array]:
        """Values, int32 indices and others of the k best, (C, at most k); -inf, -1, 0 unused."""
        if len(self._found) > 1:
            xp = array_namespace(self._found[0][0])
            kernels = engine(xp)
            values, *rest = (xp.concat(arrays, axis=1) for arrays in zip(*self._found, strict=True))
            best, places, _ = kernels.select(values, self._k)
            indices, *others = (kernels.take_slots(array, places) for array in rest)
            self._found = [[best, xp.where(places < 0, places, indices), *others]]
        self.waiting = 0
        return self._found[0]
