"""
Results of 800 problems as they were, so that the code can be rewritten without changing them.

``tests/data/recorded.npz`` holds the outputs, gradients and kept indices of 200 problems of each
dtype, made by ``topk_np`` at one time on one machine; `tests.test_recorded` compares today's with
them. The other tests say what must be true of any result. This file says more: that nothing at all
changed, beyond the last digits. Whoever changes results on purpose writes it anew.

Inputs are not stored: `tests.recorded_problems` makes them from a seed. A draw is taken only if
rounding cannot change which keys it keeps (`tests.recorded_margins`), and if its results stay well
within the tolerances with either engine and with sums in another order. The stored numbers are
those that the inputs give in float64, whatever their dtype is, so that the tolerances leave room
on both sides.

For each array the file has its largest value by size, numbers as multiples of a fraction of that,
and a checksum of the rest: shape, dtype, and where it is not finite. Arrays of more than 80 numbers
are stored as 40 of these, and 24 sums with random signs in which every number takes part. Indices
have a hash, and must be equal.

    python -m tests.recorded --write              make the file anew
    python -m tests.recorded --bits FILE          hashes of all arrays, to compare two versions of
                                                  the code on one machine
    python -m tests.recorded --compare A B        what differs between two such files
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import topk_np
from tests.recorded_margins import is_settled
from tests.recorded_problems import DTYPES, PROBLEMS, Draws, Problem, make_problem

FILE = Path(__file__).parent / "data" / "recorded.npz"
TOLERANCES = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-6, "float64": 1e-12}
"""Of each array: the largest difference, as a share of the largest value."""
STEP = 1 / 8  # of the tolerance, what stored numbers are multiples of
WHOLE, SAMPLED, SUMS = 80, 40, 24  # longer arrays than the first are stored in part
STEADY = 0.75  # of the tolerance, how near results must be to those in float64
MOST_ATTEMPTS = 200


class Entry(NamedTuple):
    """What is stored of one array."""

    checksum: int
    """Of its shape, its dtype, and where which values are not finite."""
    largest: np.float32
    codes: np.ndarray
    """int64: numbers by ``STEP * tolerance * largest``."""


class Recorded(NamedTuple):
    """What is stored of one problem."""

    attempt: int
    indices: int
    """Hash of the indices; 0 of a dense function's."""
    entries: list[Entry]


Results = dict[str, np.ndarray]


def run(problem: Problem, **more: Any) -> Results:
    """Output, indices and gradients by name; the output both with and without residuals."""
    function = getattr(topk_np, problem.function)
    forward = getattr(topk_np, f"{problem.function}_fwd")
    backward = getattr(topk_np, f"{problem.function}_bwd")
    options = {**problem.options, **more}
    out, residuals = forward(*problem.inputs, **options)
    again = function(*problem.inputs, **options)
    grads = backward(residuals, problem.dout)
    results: Results = {}
    if isinstance(out, tuple):
        results |= {"out": out[0], "lse": out[1], "out alone": again[0], "lse alone": again[1]}
    else:
        results |= {"out": out, "out alone": again}
    results |= {f"d{name}": grad for name, grad in grads._asdict().items() if grad is not None}
    if problem.function.startswith("topk"):
        results["indices"] = residuals.indices
    return results


def stored(results: Results) -> Results:
    """The floating arrays that are stored: those of the call alone must be like the others."""
    return {name: array for name, array in results.items() if not name.endswith(("alone", "ices"))}


def tolerance(array: np.ndarray) -> float:
    """By its dtype, as the log-sum-exp of half precision is in float32."""
    return TOLERANCES[array.dtype.name]


def largest_of(array: np.ndarray) -> float:
    """The largest finite value by size."""
    wide = array.astype(np.float64)
    return float(np.max(np.abs(wide), initial=0, where=np.isfinite(wide)))


@cache
def _parts(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places to sample of so many numbers, and a sign for each of them."""
    draws = Draws(size)
    return draws.raw((SAMPLED,)) % size, draws.whole((size,), 0, 1) * 2 - 1


def summary(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is stored of an array, and by how much more than the rest each may differ."""
    flat = array.astype(np.float64).reshape(-1)
    flat = np.where(np.isfinite(flat), flat, 0)
    if flat.size <= WHOLE:
        return flat, np.ones(flat.size)
    places, signs = _parts(flat.size)
    each = -(-flat.size // SUMS)
    sums = np.zeros(SUMS * each)
    sums[: flat.size] = flat * signs
    # Roundings add up like a random walk.
    more = np.repeat([1, np.sqrt(each)], [SAMPLED, SUMS])
    return np.concatenate([flat[places], sums.reshape(SUMS, each).sum(axis=1)]), more


def checksum(array: np.ndarray) -> int:
    """Of shape, dtype, and where which values are not finite."""
    wide = array.astype(np.float64)
    kinds = np.isnan(wide) + 2 * np.isposinf(wide) + 4 * np.isneginf(wide)
    what = f"{array.shape} {array.dtype.name}".encode() + kinds.astype(np.uint8).tobytes()
    return zlib.crc32(what)


def hash_of(array: np.ndarray) -> str:
    """Of its bytes, row by row, with its shape and dtype."""
    what = f"{array.shape} {array.dtype.name}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(what).hexdigest()


def entry(array: np.ndarray, wide: np.ndarray) -> Entry:
    """What is stored of an array, the numbers of which are those that float64 gives."""
    largest = np.float32(largest_of(wide))
    step = float(largest) * STEP * tolerance(array)
    numbers, _ = summary(wide)
    codes = np.rint(numbers / step) if step else np.zeros(numbers.shape)
    return Entry(checksum(array), largest, codes.astype(np.int64))


def complaints(results: Results, recorded: Recorded) -> Iterator[str]:
    """How results differ from the recorded ones, by more than their tolerances."""
    indices = results.get("indices")
    if indices is not None and int(hash_of(indices)[:16], 16) != recorded.indices:
        yield "other keys are kept"
    now = stored(results)
    if len(now) != len(recorded.entries):
        yield f"there are {len(now)} arrays, not {len(recorded.entries)}"
        return
    then = dict(zip(now, recorded.entries, strict=True))
    for name, array in results.items():
        before = then.get(name.removesuffix(" alone"))
        if before is None:
            continue
        if checksum(array) != before.checksum:
            yield f"{name} has another shape or dtype, or is not finite elsewhere"
            continue
        step = float(before.largest) * STEP * tolerance(array)
        numbers, more = summary(array)
        allowed = (float(before.largest) * tolerance(array) + step / 2) * more
        excess = np.abs(numbers - before.codes * step) - allowed
        if np.any(excess > 0):
            worst = int(np.argmax(excess))
            difference = abs(numbers[worst] - before.codes[worst] * step) / before.largest
            bound = more[worst] * tolerance(array)
            yield f"{name} differs by {difference:.1e} of its largest value, not {bound:.1e}"


# Writing


def in_float64(problem: Problem) -> Results:
    """What the same numbers give in float64."""
    return run(problem if problem.dtype == "float64" else _cast(problem, "float64"))


def is_steady(problem: Problem, results: Results, wide: Results) -> bool:
    """Whether results are nearer to those in float64 than the tolerance, however they are made."""
    if problem.dtype == "float64":
        # Those in float32 tell what is nothing but rounding; they may keep other keys.
        narrow = run(_cast(problem, "float32"))
        if not _same_keys(narrow, wide):
            return True
        return all(_near(narrow[name], array, 1e-3) for name, array in stored(wide).items())
    return all(
        _same_keys(way, truth)
        and all(
            _near(array, truth[name], STEADY * tolerance(array))
            for name, array in stored(way).items()
        )
        for way, truth in _ways(problem, results, wide)
    )


def _ways(problem: Problem, results: Results, wide: Results) -> Iterator[tuple[Results, Results]]:
    """Results that are rounded in several ways, each with those in float64."""
    yield results, wide
    for other in (_reversed(problem), _times(problem, 3), _times(problem, 1.75)):
        yield run(other), in_float64(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPK_NP_KERNELS", "portable")
        portable = run(problem)
    yield portable, wide


def _same_keys(one: Results, other: Results) -> bool:
    """Whether the same keys are kept, if any are chosen."""
    return np.array_equal(one.get("indices", 0), other.get("indices", 0))


def _near(array: np.ndarray, wide: np.ndarray, share: float) -> bool:
    """Whether arrays differ by at most this share of the largest value."""
    if not np.array_equal(np.isfinite(array), np.isfinite(wide)):
        return False
    gap = largest_of(np.nan_to_num(array.astype(np.float64)) - np.nan_to_num(wide))
    return gap <= share * largest_of(wide)


def _reversed(problem: Problem) -> Problem:
    """The problem with the columns of queries and keys in the opposite order."""
    first, second, third = problem.inputs
    options = dict(problem.options)
    if "gate" in options:
        options["gate"] = options["gate"][..., ::-1]
    return replace(problem, inputs=(first[..., ::-1], second[..., ::-1], third), options=options)


def _times(problem: Problem, factor: float) -> Problem:
    """The problem with larger gradients, which are rounded otherwise."""

    def times(array: np.ndarray) -> np.ndarray:
        return (array.astype(np.float64) * factor).astype(array.dtype)

    dout = problem.dout
    return replace(
        problem, dout=tuple(map(times, dout)) if isinstance(dout, tuple) else times(dout)
    )


def _cast(problem: Problem, dtype: str) -> Problem:
    """The same numbers in another dtype."""

    def cast(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        if isinstance(value, topk_np.T5Bias):
            return topk_np.T5Bias(cast(value.table), value.bidirectional, value.max_distance)
        floating = isinstance(value, np.ndarray) and (
            value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16
        )
        return value.astype(dtype) if floating else value

    options = {name: cast(value) for name, value in problem.options.items()}
    inputs, dout = cast(problem.inputs), cast(problem.dout)
    return replace(problem, dtype=dtype, inputs=inputs, options=options, dout=dout)


def record(dtype: str, number: int) -> Recorded:
    """The first draw of a problem whose results hold everywhere, and what is stored of it."""
    for attempt in range(MOST_ATTEMPTS):
        problem = make_problem(dtype, number, attempt)
        if not is_settled(problem):
            continue
        results, wide = run(problem), in_float64(problem)
        if is_steady(problem, results, wide):
            indices = results.get("indices")
            kept = 0 if indices is None else int(hash_of(indices)[:16], 16)
            entries = [entry(array, wide[name]) for name, array in stored(results).items()]
            return Recorded(attempt, kept, entries)
    raise RuntimeError(f"no draw will do for {make_problem(dtype, number, 0)}")


def write() -> None:
    """Make the file anew."""
    arrays: dict[str, np.ndarray] = {}
    for dtype in DTYPES:
        found = []
        for number in range(PROBLEMS):
            found.append(record(dtype, number))
            print(f"\r{dtype} {number + 1} / {PROBLEMS}", end="", file=sys.stderr, flush=True)
        entries = [one for recorded in found for one in recorded.entries]
        codes = np.concatenate([one.codes for one in entries])
        arrays |= {
            f"{dtype}.attempts": np.array([one.attempt for one in found], np.uint16),
            f"{dtype}.indices": np.array([one.indices for one in found], np.uint64),
            f"{dtype}.arrays": np.array([len(one.entries) for one in found], np.uint8),
            f"{dtype}.checksums": np.array([one.checksum for one in entries], np.uint32),
            f"{dtype}.largest": np.array([one.largest for one in entries]),
            f"{dtype}.lengths": np.array([len(one.codes) for one in entries], np.uint8),
            # A bit for the sign last, and byte by byte: the bytes of small numbers are 0.
            f"{dtype}.codes": (np.abs(codes) * 2 + (codes < 0)).view(np.uint8).reshape(-1, 8).T,
        }
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"\n{FILE}: {FILE.stat().st_size:,} bytes", file=sys.stderr)


@cache
def read(dtype: str) -> list[Recorded]:
    """What is stored of the problems of a dtype."""
    with np.load(FILE, allow_pickle=False) as file:
        part = {name.split(".")[1]: file[name] for name in file if name.startswith(f"{dtype}.")}
    signed = np.ascontiguousarray(part["codes"].T).view(np.int64)[:, 0]
    codes = np.where(signed % 2, -(signed // 2), signed // 2)
    pieces = np.split(codes, np.cumsum(part["lengths"][:-1], dtype=np.int64))
    entries = [
        Entry(int(check), largest, piece)
        for check, largest, piece in zip(part["checksums"], part["largest"], pieces, strict=True)
    ]
    ends = np.cumsum(part["arrays"], dtype=np.int64)
    return [
        Recorded(int(attempt), int(indices), entries[end - count : end])
        for attempt, indices, count, end in zip(
            part["attempts"], part["indices"], part["arrays"].astype(int), ends, strict=True
        )
    ]


# Comparing two versions of the code, bit for bit


def bits(workers: int | None) -> dict[str, Any]:
    """The hash of every array of every problem."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        for number, recorded in enumerate(read(dtype)):
            problem = make_problem(dtype, number, recorded.attempt)
            results = run(problem) if workers is None else run(problem, workers=workers)
            found[f"{dtype} {number}"] = {
                "problem": str(problem),
                "kinds": [problem.function, dtype, *problem.options],
                "arrays": {name: hash_of(array) for name, array in results.items()},
            }
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print which arrays differ, and how many of the problems with each option; their number."""
    everywhere: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    by_array: Counter[str] = Counter()
    lines = []
    for name, one in before.items():
        everywhere.update(one["kinds"])
        arrays, others = one["arrays"], after[name]["arrays"]
        different = [a for a in {**arrays, **others} if arrays.get(a) != others.get(a)]
        if different:
            changed.update(one["kinds"])
            by_array.update(f"{one['kinds'][0]} {a}" for a in different)
            lines.append(f"{one['problem']}\n    {', '.join(different)}")
    print(*lines, sep="\n")
    print(f"\n{len(lines)} of {len(before)} problems differ")
    if lines:
        print("\nof the problems with")
        for kind in everywhere:
            print(f"    {kind:20} {changed[kind]:4} of {everywhere[kind]}")
        print("\narrays")
        for kind, count in sorted(by_array.items()):
            print(f"    {kind:32} {count:4}")
    return len(lines)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="What results were, and whether they still are.")
    doing = parser.add_mutually_exclusive_group(required=True)
    doing.add_argument("--write", action="store_true", help="make the file anew")
    doing.add_argument("--bits", type=Path, metavar="FILE", help="write hashes of all arrays")
    doing.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="two such files")
    parser.add_argument("--workers", type=int, help="threads, with --bits")
    arguments = parser.parse_args()
    if arguments.compare:
        before, after = (json.loads(file.read_text()) for file in arguments.compare)
        return int(compare(before, after) > 0)
    print(f"topk_np is {topk_np.__file__}", file=sys.stderr)
    if arguments.write:
        write()
    else:
        arguments.bits.write_text(json.dumps(bits(arguments.workers), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
