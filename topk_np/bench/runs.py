"""What a peer makes of a case: functions that are ready to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from topk_np.bench.cases import FORWARD


class Runs(NamedTuple):
    """A case that is ready to run; what is returned is kept alive until it is measured."""

    forward: Callable[[], Any]
    """Returns the output."""
    both: Callable[[], tuple[Any, ...]] | None = None
    """Returns the output and the gradients of query, key and value."""

    def of(self, mode: str) -> Callable[[], Any]:
        """What runs `mode`."""
        return self.forward if mode == FORWARD or self.both is None else self.both
