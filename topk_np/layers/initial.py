"""Parameters to start from."""

from __future__ import annotations

import numpy as np


def glorot(rng: np.random.Generator, rows: int, columns: int, /) -> np.ndarray:
    """A float32 matrix as Glorot and Bengio 2010, equation 16, draw it."""
    bound = np.sqrt(6 / (rows + columns))
    return rng.uniform(-bound, bound, (rows, columns)).astype(np.float32)
