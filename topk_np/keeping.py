"""Steps 1 and 2 of `topk_np.core`: the scores of a task's queries, and which keys they keep."""

from __future__ import annotations

from typing import NamedTuple

from array_api_compat import device

from topk_np._namespace import Array, Namespace, cast, cumulative_sum, is_cupy, is_numpy
from topk_np.chunking import slices
from topk_np.kernels import engine
from topk_np.problem import Problem
from topk_np.rowsparse import sampled_matmul
from topk_np.rules import AlwaysKept, Rule
from topk_np.selection import KBest, falling, take_slots
from topk_np.work import Part, Task, each_head
from topk_np.workers import Scratch


class Keeping(NamedTuple):
    """What the queries of a task keep: their rows, one head after the other."""

    scores: Array
    """(G C, K) what goes into the activation; -inf in unused slots."""
    indices: Array
    """(G C, K) int32, ascending; -1 in unused slots."""
    linear: Array | None = None
    """(G C, K) linear factors of gated units."""


def keep(
    problem: Problem, part: Part, task: Task, rule: Rule, block: int, scratch: Scratch
) -> Keeping:
    """What the queries of a task keep, from the scores of `block` keys at a time."""
    xp = problem.xp
    mass = _Mass()
    always = None if problem.always is None else _SetAside(problem, part, task, problem.always)
    p = rule.p if problem.keys else None  # where there are no keys, there is no mass
    p = None if p == 1 else p  # whatever rounding says
    seen = problem.seen(task)
    blocks = [
        slice(seen.start + some.start, seen.start + some.stop)
        for some in slices(seen.stop - seen.start, block)
    ]

    def see_all(best: KBest) -> KBest:
        for keys in blocks or [slice(0, min(problem.keys, 1))]:
            ranks = problem.ranks(part, task, keys, scratch)
            if p is not None:
                mass.add(xp, ranks * problem.late_scale)
            if always is not None:
                ranks = always.take(ranks, keys)
            if not problem.ranks_weights:
                best.add(ranks, keys.start)
                continue
            weights = problem.activation.value(ranks)
            linear = problem.linear(part, task, keys, scratch)
            others = [ranks] if linear is None else [ranks, linear]
            sizes = xp.abs(weights if linear is None else weights * linear)
            best.add(xp.where(ranks == -xp.inf, -xp.inf, sizes), keys.start, *others)
        return best

    guessing = is_numpy(xp) and p is None and always is None and len(blocks) > 1
    best = see_all(KBest(rule.most, _common(problem, task, blocks[0]) if guessing else None))
    if not best.sure:
        best = see_all(KBest(rule.most))
    scores, indices, *others = best.result(min(rule.most, problem.keys))
    if problem.ranks_weights:
        scores = xp.where(indices < 0, -xp.inf, others[0])
    if problem.late_scale != 1:
        scores = scores * problem.late_scale
    if problem.gate is not None:
        linear = others[1] if problem.ranks_weights else _linear(problem, part, indices)
        return Keeping(scores, indices, linear)
    if p is not None:
        held = None if always is None else mass.weights(xp, always.scores * problem.late_scale)
        scores, indices = _fewest(xp, scores, indices, mass.weights(xp, scores), held, p)
    if always is not None:
        scores = xp.concat([scores, always.scores * problem.late_scale], axis=1)
        indices = xp.concat([indices, always.indices], axis=1)
    if p is not None or always is not None:
        scores, indices = _in_order(xp, scores, indices, problem.slots(rule))
    return Keeping(scores, indices)


def _common(problem: Problem, task: Task, first: slice) -> int | None:
    """From the `first` block on, how many keys all queries see; None if not all of the block."""
    keys = problem.seen_by_all(task)
    inside = keys.start <= first.start and first.stop <= keys.stop
    return keys.stop - first.start if inside else None


def _linear(problem: Problem, part: Part, indices: Array) -> Array:
    """The linear factors of kept units, which were ranked by the gate's score alone."""
    xp = problem.xp
    counts = slot_counts(xp, indices)
    linear = sampled_matmul(part.query, part.stacked("key"), indices, counts)
    if problem.key_bias is None:
        return linear
    bias = cast(xp, problem.key_bias[:, 0], problem.dtype)
    flat = xp.reshape(xp.where(indices < 0, 0, indices), (-1,))
    return linear + xp.reshape(xp.take(bias, flat), indices.shape)


def slot_counts(xp: Namespace, indices: Array) -> Array:
    """(G C,) int32: the slots of each row that are in use."""
    if is_numpy(xp) and indices.size and xp.min(indices[:, -1]) >= 0:
        return xp.full(indices.shape[0], indices.shape[1], dtype=xp.int32)
    return xp.sum(xp.astype(indices >= 0, xp.int32), axis=1, dtype=xp.int32)


class _SetAside:
    """The keys of a task that are always kept: taken out of the blocks before these are ranked."""

    def __init__(self, problem: Problem, part: Part, task: Task, kept: AlwaysKept) -> None:
        self._xp, self._task, self._kept = problem.xp, task, kept
        found = [kept.indices(part.query, head, task.rows) for head in task.heads]
        self._places = problem.xp.concat(found, axis=0)
        self.scores = problem.xp.full(
            self._places.shape, -problem.xp.inf, dtype=problem.dtype, device=device(part.query)
        )
        """(G C, S) but for the late scale; -inf where a key is masked, or there is none."""

    @property
    def indices(self) -> Array:
        """(G C, S) int32; -1 where the score is -inf."""
        xp = self._xp
        return xp.astype(xp.where(self.scores == -xp.inf, -1, self._places), xp.int32)

    def take(self, ranks: Array, keys: slice) -> Array:
        """Remember the scores of those among `keys`; `ranks` with -inf in their place."""
        xp, task = self._xp, self._task
        here = (self._places >= keys.start) & (self._places < keys.stop)
        inside = xp.astype(xp.where(here, self._places - keys.start, -1), xp.int32)
        self.scores = xp.where(here, take_slots(ranks, inside), self.scores)

        def hide(i: int, own: Array) -> Array:
            always = self._kept.pairs(own, task.heads[i], task.rows, keys)
            return engine(xp).hide(own, ~always)

        return each_head(task, ranks, hide)


class _Mass:
    """The softmax's denominator of each row, summed up from block to block."""

    def __init__(self) -> None:
        self._largest: Array = None  # (G C, 1); a row without any allowed score has -inf
        self._total: Array = None

    def add(self, xp: Namespace, scores: Array) -> None:
        """See a block of scores (G C, n)."""
        largest = xp.max(scores, axis=1, keepdims=True)
        if self._largest is not None:
            largest = xp.maximum(largest, self._largest)
        total = xp.sum(xp.exp(scores - _finite(xp, largest)), axis=1, keepdims=True)
        if self._total is not None:
            total = total + self._total * xp.exp(self._largest - _finite(xp, largest))
        self._largest, self._total = largest, total

    def weights(self, xp: Namespace, scores: Array) -> Array:
        """The weights of some of the scores seen."""
        return xp.exp(scores - _finite(xp, self._largest)) / xp.where(
            self._total == 0, 1.0, self._total
        )


def _finite(xp: Namespace, largest: Array) -> Array:
    return xp.where(largest == -xp.inf, 0.0, largest)


def _fewest(
    xp: Namespace, scores: Array, indices: Array, weights: Array, held: Array | None, p: float
) -> tuple[Array, Array]:
    """The largest of the scores, as few as bring what is `held` already to a mass of p."""
    order = falling(xp, scores)
    weights = xp.take_along_axis(weights, order, axis=1)
    if is_numpy(xp) or is_cupy(xp):  # others may not have it
        weights = xp.astype(weights, xp.float64)
    before = cumulative_sum(xp, weights) - weights
    if held is not None:
        before = before + xp.sum(held, axis=1, keepdims=True)
    enough = (before >= p) & (before > 0)  # not with NaN, nor of the first where p is tiny
    enough = xp.take_along_axis(enough, xp.argsort(order, axis=1), axis=1)
    return xp.where(enough, -xp.inf, scores), xp.where(enough, -1, indices)


def _in_order(xp: Namespace, scores: Array, indices: Array, slots: int) -> tuple[Array, Array]:
    """The first so many slots in ascending order of their index, unused ones last."""
    last = xp.iinfo(indices.dtype).max
    order = xp.argsort(xp.where(indices < 0, last, indices), axis=1, stable=True)[:, :slots]
    return tuple(xp.take_along_axis(array, order, axis=1) for array in (scores, indices))
