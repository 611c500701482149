"""
Results of 800 problems as they were, so that the code can be rewritten without changing them.

``tests/data/recorded.npz`` holds the outputs, gradients and kept indices of 200 problems of each
dtype, made by ``topk_np`` at one time on one machine; `tests.test_recorded` compares today's with
them. Other tests check what must be true of any result; this one notices every change beyond the
last digits. After a change of results that is meant, write the file once more.

Inputs are not stored: `tests.recorded_problems` makes them from a seed. A draw is taken only if
rounding cannot change which keys it keeps (`tests.recorded_margins`), and if its results stay well
within the tolerances however they are rounded (`tests.recorded_runs`). The stored numbers are
those that the inputs give in float64, whatever their dtype is, so that the tolerances leave room
on both sides.

For each array the file has its largest value by size, numbers as multiples of a fraction of that,
and a checksum of the rest: shape, dtype, and where it is not finite. Arrays of more than 80 numbers
are stored as 40 of these, and 24 sums with random signs in which every number takes part. Indices
have a hash, and must be equal.

    python -m tests.recorded --write              write the file
    python -m tests.recorded --bits FILE          hashes of all arrays, to compare two versions of
                                                  the code on one machine
    python -m tests.recorded --compare A B        the differences between two such files
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import topk_np
from tests.recorded_margins import is_settled
from tests.recorded_problems import DTYPES, PROBLEMS, Draws, make_problem
from tests.recorded_runs import Results, in_float64, is_steady, largest_of, run, stored, tolerance

FILE = Path(__file__).parent / "data" / "recorded.npz"
STEP = 1 / 8  # of the tolerance, what stored numbers are multiples of
WHOLE, SAMPLED, SUMS = 80, 40, 24  # longer arrays than the first are stored in part
MOST_ATTEMPTS = 200


class Entry(NamedTuple):
    """The stored part of one array."""

    checksum: int
    """Of its shape, its dtype, and the places of values that are not finite."""
    largest: np.float32
    codes: np.ndarray
    """int64, in units of ``STEP * tolerance * largest``."""


class Recorded(NamedTuple):
    """The stored part of one problem."""

    attempt: int
    indices: int
    """Hash of the indices; 0 of a dense function's."""
    entries: list[Entry]


@cache
def _parts(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places to sample from `size` numbers, and a sign for each number."""
    draws = Draws(size)
    return draws.raw((SAMPLED,)) % size, draws.whole((size,), 0, 1) * 2 - 1


def summary(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored numbers of an array, and for each a factor of its tolerance."""
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
    """A checksum of shape, dtype, and the places of values that are not finite."""
    wide = array.astype(np.float64)
    kinds = np.isnan(wide) + 2 * np.isposinf(wide) + 4 * np.isneginf(wide)
    what = f"{array.shape} {array.dtype.name}".encode() + kinds.astype(np.uint8).tobytes()
    return zlib.crc32(what)


def hash_of(array: np.ndarray) -> str:
    """A hash of an array's bytes, row by row, with its shape and dtype."""
    what = f"{array.shape} {array.dtype.name}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(what).hexdigest()


def entry(array: np.ndarray, wide: np.ndarray) -> Entry:
    """The stored part of an array, with the numbers that float64 gives."""
    largest = np.float32(largest_of(wide))
    step = float(largest) * STEP * tolerance(array)
    numbers, _ = summary(wide)
    codes = np.rint(numbers / step) if step else np.zeros(numbers.shape)
    return Entry(checksum(array), largest, codes.astype(np.int64))


def complaints(results: Results, recorded: Recorded) -> Iterator[str]:
    """Differences from the recorded results that exceed the tolerances."""
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


def record(dtype: str, number: int) -> Recorded:
    """Record the first draw of a problem that gives the same results on every processor."""
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
    """Write the file."""
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
    """The stored part of each problem of a dtype."""
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
    """A hash of every array of every problem."""
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
    """Print the arrays that differ, counted by option; return the number of problems."""
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
    parser = argparse.ArgumentParser(description="Compare results with recorded ones.")
    doing = parser.add_mutually_exclusive_group(required=True)
    doing.add_argument("--write", action="store_true", help="write tests/data/recorded.npz")
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
