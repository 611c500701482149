"""Residuals: the part of a forward pass that its backward pass needs."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from topk_np._namespace import Array, nbytes
from topk_np.core.keep import NOTHING, Kept
from topk_np.options.call import Call
from topk_np.schedule.plan import Schedule


@dataclass(frozen=True, eq=False, repr=False)
class Residuals:
    """The inputs by reference; nothing else, unless scores and indices were kept."""

    call: Call
    schedule: Schedule
    workers: int | Executor | None
    lead: tuple[int, ...]
    """The shape of the output without its last axis."""
    with_lse: bool = False
    """True if the log-sum-exp was returned, and so has a gradient too."""
    kept: Kept = NOTHING
    """Arrays (*batch, Q, K)."""

    @property
    def chunk_size(self) -> int:
        """The queries of a chunk in the forward pass."""
        return self.schedule.chunk_size

    @property
    def nbytes(self) -> int:
        """Bytes kept beyond the inputs."""
        return sum(nbytes(array) for array in self.kept if array is not None)

    def __repr__(self) -> str:
        """Return a summary in one line."""
        kept = f"k={self.call.slots} of " if self.kept.scores is not None else ""
        return (
            f"{type(self).__name__}(queries {self.lead}, {kept}{self.call.keys} keys, "
            f"{self.nbytes} bytes)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out an executor, which cannot be pickled: the default takes its place."""
        workers = None if isinstance(self.workers, Executor) else self.workers
        return vars(self) | {"workers": workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` gave."""
        vars(self).update(state)


class TopKResiduals(Residuals):
    """The inputs by reference, and K scores and K indices a query."""

    @property
    def scores(self) -> Array:
        """(..., K) scores of the kept keys, input of the activation; -inf in unused slots."""
        return self._of_lead(0)

    @property
    def indices(self) -> Array:
        """(..., K) int32 indices of the kept keys, ascending; -1 in unused slots."""
        return self._of_lead(1)

    def _of_lead(self, which: int) -> Array:
        array: Array = self.kept[which]
        return self.call.xp.reshape(array, (*self.lead, array.shape[-1]))
