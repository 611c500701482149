"""Checks of what models are given: token ids, masks and labels."""

from __future__ import annotations

from topk_np._namespace import Array, array_namespace


def check_tokens(table: Array, tokens: Array, /, *, name: str = "tokens", least: int = 1) -> None:
    """Check that `tokens` are ids of rows of `table`, and at least so many."""
    xp = array_namespace(table, tokens)
    if not xp.isdtype(tokens.dtype, "integral"):
        raise TypeError(f"{name} must be integers, got dtype {tokens.dtype}")
    if tokens.ndim < 1 or 0 in tokens.shape:
        raise ValueError(f"{name} must have shape (..., Q) and no empty axis, got {tokens.shape}")
    if tokens.shape[-1] < least:
        raise ValueError(f"{name} must have at least {least} positions, got shape {tokens.shape}")
    size = table.shape[0]
    low, high = int(xp.min(tokens)), int(xp.max(tokens))
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in 0 .. {size - 1}, got {low} .. {high}")


def check_mask(name: str, mask: Array, tokens: Array, /) -> None:
    """Check that `mask` is boolean and says of each token whether it is no padding."""
    xp = array_namespace(tokens, mask)
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"{name} must be boolean, got dtype {mask.dtype}")
    if tuple(mask.shape) != tuple(tokens.shape):
        raise ValueError(
            f"{name} must have the shape of the tokens, {tokens.shape}, got {mask.shape}"
        )
