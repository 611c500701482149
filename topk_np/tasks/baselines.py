"""What simple guesses reach: no accuracy means anything without them."""

from __future__ import annotations

from typing import Any

import numpy as np

from topk_np.tasks.examples import Examples


def guess_by(
    train_cues: np.ndarray[Any, Any], train: Examples, cues: np.ndarray[Any, Any], test: Examples
) -> float:
    """Accuracy on `test` of the class that goes most often with the same cue in `train`.

    A cue that `train` lacks gets the most frequent class of all.
    """
    common = int(np.bincount(train.labels).argmax())
    best = {
        cue: int(np.bincount(train.labels[train_cues == cue]).argmax())
        for cue in np.unique(train_cues).tolist()
    }
    guesses = np.array([best.get(cue, common) for cue in cues.tolist()])
    return float(np.mean(guesses == test.labels))


def guess_majority(train: Examples, test: Examples) -> float:
    """Accuracy on `test` of the most frequent class of `train`."""
    return guess_by(np.zeros(len(train), int), train, np.zeros(len(test), int), test)
