"""
Dense products, and products with a row-sparse matrix.

A row-sparse matrix is given to scipy's compressed-sparse-row loops where the other operand lies
densely in memory; otherwise rows are gathered. Where rows are short and much of them is kept, it is
written out instead, with 0 for what is not kept: the matrix product then costs less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.kernels import tuning

SLOTS_BY_KEY = 4  # times the kept slots are the keys at most, where reading by key pays
COPIED = 64 * 64  # numbers of a matrix whose transpose BLAS takes twice as long for
APART = 16  # numbers between rows of scores that would compete for the same places of a cache


def product(query: Array, key: Array, scale: float, scratch: Any, name: str) -> Array:
    """(G, C, n): ``scale * query keyᵀ``, in the thread's own memory of that name."""
    scores = _scratch(scratch, name, (*query.shape[:2], key.shape[1]), query.dtype)
    exact = scale != 0 and abs(math.frexp(scale)[0]) == 0.5
    if exact and scale != 1:  # a power of two rounds nothing, and there are fewer queries to scale
        query = query * query.dtype.type(scale)
    if key.itemsize not in key.strides[1:] or 0 in key.strides[1:]:
        key = np.ascontiguousarray(key)  # BLAS needs one axis without gaps, and no repetition
    key = key.mT
    if len(key) > 1 and key[0].size <= COPIED:
        key = np.ascontiguousarray(key)
    np.matmul(query, key, out=scores)
    if not exact:
        scores *= scale
    return scores


def _scratch(scratch: dict[str, Array], name: str, shape: tuple[int, int, int], dtype: Any) -> Any:
    """An array with arbitrary contents, in a buffer used again: fresh ones cost page faults."""
    heads, rows, columns = shape
    # BLAS writes several rows at once, which must not all go to the same places of a cache.
    same_place = columns * np.dtype(dtype).itemsize % tuning.current.same_place == 0
    apart = columns + APART * same_place
    size = heads * rows * apart
    buffer = scratch.get(name)
    if buffer is None or buffer.size < size or buffer.dtype != dtype:
        scratch.pop(name, None)  # two at once would be one too many
        del buffer
        buffer = scratch[name] = np.empty(size, dtype)
    return buffer[:size].reshape(heads, rows, apart)[..., :columns]


class Pattern:
    """The places of entries in a row-sparse matrix (G, C, N)."""

    def __init__(self, indices: Array, keys: int) -> None:
        self.indices = indices
        self.shape = (*indices.shape[:2], keys)
        few = 0 < keys <= tuning.current.short_keys
        kept = keys <= tuning.current.short_share * indices.shape[2]
        self.short = few and kept and indices.shape[1] * keys <= tuning.current.short_scores
        last = indices[..., -1:]
        self.used = indices >= 0 if last.size and last.min() < 0 else None
        """(G, C, K) bool: which slots are in use; None if all are."""
        self._written: tuple[Any, Any] = (None, None)

    def written(self, weights: Array) -> Array:
        """(G, C, N): the matrix with these weights; that of the last weights is remembered."""
        of, matrix = self._written
        if of is not weights:
            matrix = np.zeros(self.shape, weights.dtype)
            heads, rows, columns = self.shape
            indices, entries = self.indices, weights
            if self.used is not None:  # unused slots add 0 to the first column
                indices, entries = np.maximum(indices, 0), np.where(self.used, weights, 0)
            ends = np.arange(heads * rows + 1, dtype=np.int32) * np.int32(indices.shape[2])
            csr = ends, indices.reshape(-1), entries.reshape(-1)
            sparsetools().csr_todense(heads * rows, columns, *csr, matrix.reshape(-1))
            self._written = weights, matrix
        return matrix

    def csr(self, head: int, weights: Array) -> tuple[Array, Array, Array]:
        """A head's matrix as compressed sparse rows: where they end, columns, entries."""
        indices, weights = self.indices[head], weights[head]
        rows, k = indices.shape
        if self.used is None:
            ends = np.arange(rows + 1, dtype=np.int32) * np.int32(k)
            return ends, indices.reshape(-1), weights.reshape(-1)
        used = self.used[head]
        ends = np.zeros(rows + 1, np.int32)
        np.cumsum(np.count_nonzero(used, axis=1), out=ends[1:])
        return ends, indices[used], weights[used]

    def sample(self, matrix: Array) -> Array:
        """(G, C, K): the entries of a whole matrix (G, C, N) in the slots; 0 in unused ones."""
        rows = np.arange(0, matrix.size, self.shape[2]).reshape(*self.shape[:2], 1)
        # An unused slot takes any entry at first.
        sampled = np.take(matrix.reshape(-1), self.indices + rows, mode="clip")
        return sampled if self.used is None else np.where(self.used, sampled, 0)


pattern = Pattern


def gather_matmul(weights: Array, pattern: Pattern, values: Array) -> Array:
    """(G, C, V): the row-sparse matrix times values (G, N, V)."""
    if pattern.short:
        out = pattern.written(weights) @ values.astype(weights.dtype, copy=False)
        if _is_finite(out):  # no NaN or inf that is not kept took part, not even times 0
            return out
    out = np.zeros((*weights.shape[:2], values.shape[2]), weights.dtype)
    for head, matrix in enumerate(values):
        if matrix.flags.c_contiguous and matrix.dtype == weights.dtype:
            multiply, csr = sparsetools().csr_matvecs, pattern.csr(head, weights)
            by_key = SLOTS_BY_KEY * weights[head].size >= matrix.shape[0]
            if by_key and matrix.nbytes > tuning.current.cache_bytes:
                # Each key for all queries that keep it: the processor predicts the order in memory.
                multiply, csr = sparsetools().csc_matvecs, _by_column(csr, matrix.shape[0])
            multiply(
                *out.shape[1:2], *matrix.shape, *csr, matrix.reshape(-1), out[head].reshape(-1)
            )
            continue
        own = weights[head]
        free = None if pattern.used is None else ~pattern.used[head]
        if free is not None:
            own = np.where(free, 0, own)
        for rows, gathered in _gathered(pattern.indices[head], matrix, weights.dtype):
            if free is not None:
                gathered[free[rows]] = 0
            np.matmul(own[rows, None, :], gathered, out=out[head, rows, None, :])
    return out


def sampled_matmul(rows: Array, values: Array, pattern: Pattern) -> Array:
    """(G, C, K): the entries of ``rows valuesᵀ`` in the used slots, 0 in the others."""
    if pattern.short:
        values = values.astype(rows.dtype, copy=False).mT
        if len(values) > 1 and values[0].size <= COPIED:
            values = np.ascontiguousarray(values)
        return pattern.sample(rows @ values)
    out = np.zeros(pattern.indices.shape, rows.dtype)
    for head, matrix in enumerate(values):
        for some, gathered in _gathered(pattern.indices[head], matrix, rows.dtype):
            np.matmul(gathered, rows[head, some, :, None], out=out[head, some, :, None])
    if pattern.used is not None:
        out[~pattern.used] = 0
    return out


def _gathered(indices: Array, values: Array, dtype: Any) -> Iterator[tuple[slice, Array]]:
    """Blocks of rows with their gathered values (rows, K, V), arbitrary in unused slots."""
    k, width = indices.shape[1], values.shape[1]
    if values.shape[0] == 0 or k == 0:
        return
    size = max(1, tuning.current.gathered_bytes // max(1, k * width * dtype.itemsize))
    buffer = np.empty((min(size, indices.shape[0]), k, width), values.dtype)
    for start in range(0, indices.shape[0], size):
        block = slice(start, start + size)
        if values.flags.c_contiguous:
            gathered = buffer[: indices.shape[0] - start]
            np.take(values, indices[block], axis=0, mode="clip", out=gathered)
        else:
            gathered = values[indices[block]]
        yield block, gathered.astype(dtype, copy=False)


def scatter_matmul(
    weights: Array, pattern: Pattern, rows: Array, out: Array, first: int = 0, fresh: bool = False
) -> Array:
    """`out` (G, n, V), in place, plus rows from `first` on of the transposed matrix times rows."""
    if pattern.short and first == 0 and out.shape[1] == pattern.shape[2]:
        into = out if fresh and out.dtype == weights.dtype else None
        added = np.matmul(pattern.written(weights).mT, rows, out=into)
        if _is_finite(added):
            if not fresh:
                out += added
            elif into is None:
                out[...] = added
            return out
    if fresh:
        # Memory that is read before it is written is mapped twice, and between the two all threads
        # have to be interrupted.
        out[...] = 0
    for head, own in enumerate(out):
        _add_transposed(pattern.csr(head, weights), rows[head], own, first)
    return out


def _add_transposed(csr: tuple[Array, Array, Array], rows: Array, out: Array, first: int) -> None:
    """Add the rows from `first` on of a transposed sparse matrix times `rows` to `out`."""
    total = np.ascontiguousarray(out)
    last = first + out.shape[0]
    ends, columns, entries = csr
    # Rows of a matrix are columns of its transpose, so that nothing has to be put in order.
    multiply = sparsetools().csc_matvecs
    reached = int(columns.max(initial=-1)) + 1
    if first > 0 or reached > last or out.nbytes > tuning.current.cache_bytes:
        ends, columns, entries = _by_column(csr, max(last, reached))
        multiply, ends = sparsetools().csr_matvecs, ends[first : last + 1]
    shape = *out.shape[:1], *rows.shape
    multiply(*shape, ends, columns, entries, rows.reshape(-1), total.reshape(-1))
    if total is not out:
        out[...] = total


def add_slots(weights: Array, pattern: Pattern, out: Array) -> Array:
    """`out` (G, C, N), in place, plus the row-sparse matrix itself."""
    for head, own in enumerate(out):
        total = np.ascontiguousarray(own)
        sparsetools().csr_todense(*own.shape, *pattern.csr(head, weights), total.reshape(-1))
        if total is not own:
            own[...] = total
    return out


def _by_column(csr: tuple[Array, Array, Array], size: int) -> tuple[Array, Array, Array]:
    """A matrix of `size` columns as compressed sparse columns, each in the order of rows."""
    ends, columns, entries = csr
    by_column = np.empty(size + 1, np.int32), np.empty_like(columns), np.empty_like(entries)
    sparsetools().csr_tocsc(ends.size - 1, size, *csr, *by_column)
    return by_column


def _is_finite(array: Array) -> bool:
    """Return whether all of an array is finite, and so are its squares."""
    flat = array.reshape(-1)
    return math.isfinite(np.vdot(flat, flat))


@cache
def sparsetools() -> Any:
    """The loops below scipy's sparse matrices: they add in place, and check and copy nothing."""
    from scipy.sparse import _sparsetools  # takes a while to import

    return _sparsetools
