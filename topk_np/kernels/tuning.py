"""The numbers that decide how work is cut, as measurements found them to be quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """All of these numbers. They change speed, memory and the rounding of results, no more."""

    # How calls are cut: `topk_np.schedule.plan`.
    most_queries: int = 512
    """Queries of a chunk in the forward pass: long enough for the matrix product."""
    fewest_queries: int = 128
    """Queries of a chunk of which there may be more, one for each thread."""
    block_scores: int = 2**20
    """Scores of a block of keys, near the size of a core's cache."""
    few_more: int = 16
    """Further keys of a block, so that its rows are no multiple of 4 KiB long."""
    least_block: int = 1024
    """Keys of a block, before the budget makes chunks shorter instead."""
    long_block: int = 8
    """Times k keys make a block that is quick to select from."""
    most_backward_queries: int = 2048
    fewest_backward_queries: int = 256
    long_backward_queries: int = 1024
    """Queries of a backward chunk that is worth having four tasks, not eight."""
    most_device_queries: int = 2**14
    """A device works on one task at a time: what keeps it busy is much work at once."""
    fewest_device_queries: int = 2**9
    device_scores: int = 2**27
    stack_queries: int = 512
    """Queries of all heads of a stack."""
    stack_scores: int = 2**17
    """Scores of all heads of a stack whose rows are short."""
    dense_matrices: int = 10
    """Matrices of the size of a chunk's scores that the dense backward pass holds."""
    worth_threads: int = 2**18
    """Scores of a call from which on threads save more than they cost."""
    least_range: int = 4096
    """Keys of a gradient that several threads add to, each to a range of them."""
    product_keys: int = 1024
    """Keys whose gradient a dense product makes at once."""

    # What the NumPy engine does: `topk_np.kernels.numpy`.
    gathered_bytes: int = 2**19
    """Gathered rows that a product holds at once."""
    cache_bytes: int = 2**20
    """A matrix larger than this is read key by key, the order in which it lies in memory."""
    short_keys: int = 512
    """Keys of rows for which a product with all values may cost less than gathering some."""
    short_scores: int = 2**16
    """Scores of a head in which all rows are short."""
    short_share: int = 32
    """The products cost less where at least one in this number of keys is kept."""
    groups_per_slot: int = 4
    """Groups of a row, for each of the k best, whose maxima give a floor."""
    least_groups: int = 256
    """Groups of a row where k is small."""
    least_group: int = 4
    """Scores of a group: with smaller ones, to partition the whole row is quicker."""
    same_place: int = 4096
    """Rows a multiple of these bytes apart compete for the same places in the first cache."""


current = Tuning()
"""The numbers in force. Tests swap them for ones that cut small problems into many pieces."""
