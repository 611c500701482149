"""The options that the attention functions of linear memory share."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import TypedDict

from topk_np._namespace import Array


class LinearOptions(TypedDict, total=False):
    """What `linear_problem` takes by name; described in `performer_attention`, say."""

    features: int | None
    seed: int | None
    projection: Array | None
    mask: Array | None
    is_causal: bool
    query_offset: int | None
    key_lengths: int | Array | None
    scale: float | None
    chunk_size: int | None
    workers: int | Executor | None
