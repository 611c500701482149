"""Whole calls on a problem: forward and backward, with results brought back as NumPy arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

import topk_np
from tests.backends import NUMPY, Array, Backend
from tests.strategies import AttentionProblem, FFNProblem


class Run(NamedTuple):
    """Output, gradients and residuals of one forward and one backward call."""

    out: np.ndarray
    grads: tuple[np.ndarray | None, ...]
    residuals: Any


def finish(xp: Backend, bwd: Any, out: Array, residuals: Any, dout: Array) -> Run:
    """Run the backward pass and bring everything back."""
    grads = bwd(residuals, dout)
    return Run(
        xp.to_numpy(out),
        tuple(None if grad is None else xp.to_numpy(grad) for grad in grads),
        residuals,
    )


def topk_attention(problem: AttentionProblem, xp: Backend = NUMPY, **more: Any) -> Run:
    """Top-k attention on a problem, `more` options added or replaced."""
    inputs, options, dout = problem.on(xp)
    out, residuals = topk_np.topk_attention_fwd(*inputs, **{**options, **more})
    return finish(xp, topk_np.topk_attention_bwd, out, residuals, dout)


def dense_attention(problem: AttentionProblem, xp: Backend = NUMPY, **more: Any) -> Run:
    """Dense attention on a problem, `more` options added or replaced."""
    inputs, options, dout = problem.dense_on(xp)
    out, residuals = topk_np.dense_attention_fwd(*inputs, **{**options, **more})
    return finish(xp, topk_np.dense_attention_bwd, out, residuals, dout)


def topk_ffn(problem: FFNProblem, xp: Backend = NUMPY, **more: Any) -> Run:
    """The top-k feed-forward layer on a problem, `more` options added or replaced."""
    inputs, options, dout = problem.on(xp)
    out, residuals = topk_np.topk_ffn_fwd(*inputs, **{**options, **more})
    return finish(xp, topk_np.topk_ffn_bwd, out, residuals, dout)


def dense_ffn(problem: FFNProblem, xp: Backend = NUMPY, **more: Any) -> Run:
    """The dense feed-forward layer on a problem, `more` options added or replaced."""
    inputs, options, dout = problem.dense_on(xp)
    out, residuals = topk_np.dense_ffn_fwd(*inputs, **{**options, **more})
    return finish(xp, topk_np.dense_ffn_bwd, out, residuals, dout)


def selected_pairs(indices: np.ndarray, keys: int) -> np.ndarray:
    """Boolean (..., Q, N): the pairs that residuals.indices (..., Q, K) keep."""
    pairs = np.zeros((*indices.shape[:-1], keys + 1), bool)
    np.put_along_axis(pairs, np.where(indices < 0, keys, indices), True, axis=-1)
    return pairs[..., :keys]


def restricted(problem: AttentionProblem, indices: np.ndarray) -> AttentionProblem:
    """The problem in which exactly the selected pairs may attend."""
    pairs = selected_pairs(indices, problem.keys)
    return replace(problem, mask=pairs, is_causal=False, query_offset=None, window=None)
