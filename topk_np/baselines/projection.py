"""The random vectors that features are made of."""

from __future__ import annotations

import numpy as np

from topk_np._namespace import check_flag, check_integer


def draw_projection(
    features: int, width: int, /, *, seed: int = 0, orthogonal: bool = True
) -> np.ndarray:
    """
    Draw random vectors, each by itself normally distributed.

    Parameters
    ----------
    features : int
        Number of vectors F.
    width : int
        Their length D, that of queries and keys.
    seed : int, default 0
        What they are drawn from.
    orthogonal : bool, default True
        Whether each D of them are orthogonal, which makes estimates vary less; else all are
        independent.

    Returns
    -------
    NumPy array (F, D)
        In float64.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `features` is less than 1, or `width` or `seed` less than 0.

    Notes
    -----
    Orthogonal vectors are the rows of uniformly distributed rotations, stretched to the lengths of
    independent normal vectors: Choromanski et al. 2021, section 2.4, arXiv:2009.14794. Time is
    O(F D^2).

    Examples
    --------
    >>> import numpy as np
    >>> from topk_np.baselines import draw_projection
    >>> vectors = draw_projection(6, 3)
    >>> np.round(vectors[:3] @ vectors[:3].T, 12) != 0
    array([[ True, False, False],
           [False,  True, False],
           [False, False,  True]])
    """
    features = check_integer("features", features, least=1)
    width = check_integer("width", width, least=0)
    rng = np.random.default_rng(check_integer("seed", seed, least=0))
    if not check_flag("orthogonal", orthogonal) or width == 0:
        return rng.standard_normal((features, width))
    turns, triangles = np.linalg.qr(rng.standard_normal((-(-features // width), width, width)))
    # Uniform only with the signs that make the triangles' diagonals positive (Mezzadri 2007).
    turns *= np.sign(np.diagonal(triangles, axis1=1, axis2=2))[:, None, :]
    directions = turns.mT.reshape(-1, width)[:features]
    lengths = np.linalg.norm(rng.standard_normal((features, width)), axis=1, keepdims=True)
    return np.asarray(directions * lengths)
