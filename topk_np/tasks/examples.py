"""Examples in three splits, of which every task is made, and the accuracy of simple guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topk_np._namespace import check_integer

PAD = 0  # token after the end of an example


@dataclass(frozen=True, eq=False)
class Examples:
    """Sequences of tokens and the class of each.

    Attributes
    ----------
    tokens : integer array (n, L)
        Padded with `PAD`, which is no token of a sequence.
    lengths : integer array (n,)
        Tokens of each sequence before the padding, at least 1.
    labels : integer array (n,)
        Classes, from 0.
    """

    tokens: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.labels)

    @property
    def count(self) -> int:
        """The number of tokens, without padding."""
        return int(self.lengths.sum())

    def __getitem__(self, places: Any) -> Examples:
        """Some of the examples, by slice or integer array; as long as the longest of them."""
        lengths = self.lengths[places]
        longest = int(lengths.max(initial=1))
        return Examples(self.tokens[places][..., :longest], lengths, self.labels[places])

    def batch(self, size: int, *, seed: int, step: int) -> Examples:
        """
        The examples of one step of training.

        Every epoch goes through all examples once, in an order of its own; batches run on across
        epochs. A batch depends on nothing but `size`, `seed` and `step`, so that training can be
        resumed anywhere.

        Parameters
        ----------
        size : int
            Examples in the batch, at least 1.
        seed : int
            Decides the order, at least 0.
        step : int
            Number of the batch, from 0.

        Returns
        -------
        batch : Examples
            Drawn without repetition within an epoch.

        Raises
        ------
        TypeError
            If an argument is not an integer.
        ValueError
            If one is too small, or there are no examples.

        Examples
        --------
        >>> tokens = np.array([[1, 2, 3], [4, 5, 0], [6, 0, 0]])
        >>> examples = Examples(tokens, np.array([3, 2, 1]), np.array([0, 1, 0]))
        >>> batch = examples.batch(2, seed=0, step=7)
        >>> batch.tokens.shape, batch.count
        ((2, 3), 6)
        """
        size = check_integer("size", size, least=1)
        seed = check_integer("seed", seed, least=0)
        first = check_integer("step", step, least=0) * size
        if not len(self):
            raise ValueError("there must be examples to draw from, got none")
        orders: dict[int, Any] = {}
        places = []
        for number in range(first, first + size):
            epoch, place = divmod(number, len(self))
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((seed, epoch)).permutation(len(self))
            places.append(orders[epoch][place])
        return self[np.array(places)]


@dataclass(frozen=True, eq=False)
class Task:
    """Examples to learn from and to be judged by.

    Attributes
    ----------
    name : str
        For tables and files.
    vocabulary : int
        Tokens are below this number.
    classes : int
        Labels are below this number.
    train, validation, test : Examples
        Splits without a common example.
    baselines : dict
        Accuracy on `test` of guesses that need no learning of sequences, by name; "majority" is
        always among them. No accuracy means anything without them.
    """

    name: str
    vocabulary: int
    classes: int
    train: Examples
    validation: Examples
    test: Examples
    baselines: dict[str, float]


def padded(
    sequences: Sequence[Sequence[int]], dtype: Any = np.uint8
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Tokens (n, L) of sequences of different lengths, and these lengths (n,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.full((len(sequences), int(lengths.max(initial=1))), PAD, dtype)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = list(sequence)  # bytes too
    return tokens, lengths


def guess_by(
    train_cues: np.ndarray[Any, Any], train: Examples, cues: np.ndarray[Any, Any], test: Examples
) -> float:
    """
    Accuracy on `test` of the class that goes most often with the same cue in `train`.

    No accuracy of a model means anything without it. A cue that `train` lacks gets the most
    frequent class of all.
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
