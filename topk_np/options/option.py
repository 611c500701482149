"""What an option of attention may do to a chunk."""

from __future__ import annotations

from typing import Any

from topk_np._namespace import Array
from topk_np.kernels import Engine
from topk_np.options.chunk import Chunk


class Option:
    """
    An option, checked: each hook does nothing, unless the option says otherwise.

    The passes call the hooks of all options of a call in the order of `Call.options`.
    """

    score_matrices = 0
    """Matrices of the size of a block of scores that it holds."""
    slot_matrices = 0
    """Numbers that it holds for each kept slot."""
    held_matrices = 0
    """Of these, what it holds until its gradient is added up."""
    masks = False
    """Whether it hides keys from queries."""

    @property
    def inputs(self) -> dict[str, Array]:
        """Its arrays (*batch, n, ·) that have a gradient, by the gradient's name."""
        return {}

    def visible(self, chunk: Chunk, keys: slice) -> slice:
        """Of these keys, the range outside of which no query of the chunk may attend to any."""
        return keys

    def scores(self, scores: Array, chunk: Chunk, keys: slice, ops: Engine) -> Array:
        """The scores (G, C, n) of some keys, our own to change, with what the option does."""
        return scores

    def factors(self, chunk: Chunk, indices: Array, dtype: Any) -> Array | None:
        """(G, C, K): what the weights of some keys are multiplied by; None if by nothing."""
        return None

    def add_gradients(
        self, grads: Any, chunk: Chunk, dscores: Array, indices: Array, ops: Engine
    ) -> None:
        """Add to `grads` what the gradient of the kept scores (G, C, K) means for `inputs`."""

    def add_dense_gradients(self, grads: Any, chunk: Chunk, keys: slice, dscores: Array) -> None:
        """Add what the gradient of the scores (G, C, n) of these keys means for `inputs`."""

    def own_gradient(self, total: Array) -> Array:
        """The gradient (*batch, n, ·) of its array in the shape that the caller gave."""
        return total
