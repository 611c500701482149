"""
Pathfinder: tell whether one of the dashed curves joins the two dots.

Sources: Linsley et al., *Learning long-range spatial dependencies with horizontal gated recurrent
units*, 2018, arXiv:1805.08315; Tay et al., *Long Range Arena*, 2021, section 2.2.5,
arXiv:2011.04006. Theirs are drawings of 256 grey levels; here a pixel is blank, a dash or a dot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from topk_np._namespace import check_integer
from topk_np.tasks.baselines import guess_by, guess_majority
from topk_np.tasks.examples import Examples, Task

__all__ = ["Drawings", "draw", "pathfinder"]

BLANK, DASH, DOT = 1, 2, 3  # tokens
DASH_ON, DASH_PERIOD = 3, 4  # pixels drawn of each period along a curve
CLEAR = 2  # blank pixels at least between curves: more than between dashes
TRIES = 40  # for each curve of a drawing, before the drawing is given up
BATCH = 4096  # drawings made at once

Ints = np.ndarray[Any, Any]


class Drawings(NamedTuple):
    """Pictures (n, S, S) of tokens, and how they were made."""

    pictures: Ints
    curves: Ints
    """(n, S, S) booleans: the curves before they are dashed."""
    dots: Ints
    """(n, 2, 2): row and column of the two dots."""
    labels: Ints
    """1 where one curve joins the dots."""


def pathfinder(
    side: int = 32,
    *,
    train: int = 20_000,
    validation: int = 2_000,
    test: int = 2_000,
    seed: int = 0,
) -> Task:
    """
    Draw a Pathfinder task: pictures read row by row, a token a pixel.

    Parameters
    ----------
    side : int
        Pixels of a side, at least 16; sequences have its square.
    train, validation, test : int
        Examples of each split, at least 1; no picture comes twice.
    seed : int
        What is drawn from, at least 0.

    Returns
    -------
    Task
        With the baselines "majority" and "dot distance", the class that goes most often with the
        distance of the dots.

    Raises
    ------
    TypeError
        If an argument is not an integer.
    ValueError
        If one is too small.

    Examples
    --------
    >>> from topk_np.tasks.pathfinder import pathfinder
    >>> task = pathfinder(16, train=100, validation=10, test=10)
    >>> task.vocabulary, task.train.tokens.shape
    (4, (100, 256))
    """
    side = check_integer("side", side, least=16)
    sizes = {"train": train, "validation": validation, "test": test}
    sizes = {split: check_integer(split, size, least=1) for split, size in sizes.items()}
    rng = np.random.default_rng(check_integer("seed", seed, least=0))
    drawings = draw(sum(sizes.values()), side, rng)
    tokens = drawings.pictures.reshape(len(drawings.labels), -1)
    distances = np.rint(np.linalg.norm(np.diff(drawings.dots, axis=1)[:, 0], axis=1)).astype(int)
    splits, cues, first = {}, {}, 0
    for split, size in sizes.items():
        part = slice(first, first + size)
        lengths = np.full(size, side * side)
        splits[split] = Examples(tokens[part], lengths, drawings.labels[part])
        cues[split] = distances[part]
        first += size
    learn, judge = splits["train"], splits["test"]
    baselines = {
        "majority": guess_majority(learn, judge),
        "dot distance": guess_by(cues["train"], learn, cues["test"], judge),
    }
    return Task(f"pathfinder {side}", 4, 2, **splits, baselines=baselines)


def draw(count: int, side: int, rng: np.random.Generator, /) -> Drawings:
    """
    Draw so many different pictures; every second one has dots that a curve joins.

    Each has two long curves, which may carry the dots, and shorter ones to distract. Where two
    curves carry a dot each, it is at those ends whose distance is most like that of a curve's ends.
    """
    seen: set[bytes] = set()
    parts, made = [], 0
    while made < count:
        part = _batch(min(BATCH, 2 * (count - made) + 8), side, rng)
        keep: list[int] = []
        for i, picture in enumerate(part.pictures):
            wanted = (made + len(keep)) % 2
            if made + len(keep) < count and part.labels[i] == wanted:
                if picture.tobytes() not in seen:
                    keep.append(i)
                seen.add(picture.tobytes())
        parts.append(Drawings(*(array[keep] for array in part)))
        made += len(keep)
    return Drawings(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _batch(count: int, side: int, rng: np.random.Generator) -> Drawings:
    """At most so many pictures: those whose curves found room."""
    clean = np.zeros((count, side, side), bool)
    dashed = np.zeros_like(clean)
    blocked = np.zeros((count, side + 2 * CLEAR, side + 2 * CLEAR), bool)
    ends = np.zeros((count, 2, 2, 2), int)  # curve, end, row and column
    alive = np.ones(count, bool)
    long, short = 3 * side // 4, side // 4
    for curve, steps in enumerate((long, long, *[short] * (side // 8))):
        missing = alive.copy()
        for _ in range(TRIES):
            places = np.flatnonzero(missing)
            if not len(places):
                break
            walks, fits = _walk(len(places), steps, side, rng)
            row, column = walks[..., 0], walks[..., 1]
            inside = walks.clip(0, side - 1) + CLEAR
            fits &= ~blocked[places[:, None], inside[..., 0], inside[..., 1]].any(1)
            places, row, column = places[fits, None], row[fits], column[fits]
            clean[places, row, column] = True
            drawn = np.arange(steps) % DASH_PERIOD < DASH_ON
            dashed[places, row[:, drawn], column[:, drawn]] = True
            for down in range(2 * CLEAR + 1):
                for right in range(2 * CLEAR + 1):
                    blocked[places, row + down, column + right] = True
            if curve < 2:
                ends[places[:, 0], curve] = walks[fits][:, [0, -1]]
            missing[places[:, 0]] = False
        alive &= ~missing
    ends = ends[alive]
    labels = rng.integers(0, 2, len(ends))
    dots = np.where(labels[:, None, None] == 1, ends[:, 0], _apart(ends))
    pictures = np.where(dashed[alive], DASH, BLANK).astype(np.uint8)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            near = (dots + np.array([down, right])).clip(0, side - 1)
            pictures[np.arange(len(ends))[:, None], near[..., 0], near[..., 1]] = DOT
    return Drawings(pictures, clean[alive], dots, labels)


def _walk(count: int, steps: int, side: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Smooth walks (count, steps, 2), and which stay inside and clear of themselves."""
    turns = rng.normal(0, 0.12, (count, 1)) + rng.normal(0, 0.12, (count, steps))
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + turns.cumsum(1)
    steps_taken = np.stack([np.sin(angle), np.cos(angle)], -1)
    walks = rng.uniform(1, side - 2, (count, 1, 2)) + steps_taken.cumsum(1)
    pixels = np.rint(walks).astype(int)
    fits = ((pixels >= 1) & (pixels < side - 1)).all((1, 2))
    first, second = np.triu_indices(steps, 2 * CLEAR + 2)
    apart = np.abs(pixels[:, first] - pixels[:, second]).max(-1) > CLEAR
    return pixels, fits & apart.all(1)


def _apart(ends: Ints) -> Ints:
    """(n, 2, 2): an end of each long curve."""
    first, second = ends[:, 0, [0, 0, 1, 1]], ends[:, 1, [0, 1, 0, 1]]
    distances = np.linalg.norm(first - second, axis=-1)
    joined = np.linalg.norm(ends[:, 0, 0] - ends[:, 0, 1], axis=-1)[:, None]
    best = np.abs(distances - joined).argmin(1)
    places = np.arange(len(ends))
    return np.stack([first[places, best], second[places, best]], 1)
