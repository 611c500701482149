"""Attention with one mistake each, of the kind that is made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
CHUNK = 2  # queries


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return weights


def products(query: Array, key: Array) -> Array:
    return np.asarray(query @ key.mT / np.sqrt(query.shape[-1]))


def causal_mask_off_by_one(
    query: Array, key: Array, value: Array, is_causal: bool = False
) -> Array:
    scores = products(query, key)
    if is_causal:
        scores = np.where(np.tri(query.shape[-2], key.shape[-2], 1, dtype=bool), scores, -np.inf)
    return np.asarray(softmax(scores) @ value)


def ties_beyond_k(query: Array, key: Array, value: Array, *, k: int) -> Array:
    scores = products(query, key)
    least = np.sort(scores, axis=-1)[..., -k:][..., :1]
    return np.asarray(softmax(np.where(scores >= least, scores, -np.inf)) @ value)


def scaled_twice(query: Array, key: Array, value: Array, scale: float | None = None) -> Array:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return np.asarray(softmax((scale * query) @ (scale * key).mT) @ value)


def softmax_before_masking(query: Array, key: Array, value: Array, mask: Any = True) -> Array:
    return np.asarray((softmax(products(query, key)) * mask) @ value)


def masked_nan_leaks(query: Array, key: Array, value: Array, mask: Any = True) -> Array:
    weights = softmax(np.where(mask, products(query, key), -np.inf))
    return np.asarray(weights @ value)  # 0 x NaN is NaN


def uniform_on_masked_rows(query: Array, key: Array, value: Array, mask: Any = True) -> Array:
    kept = np.where(np.broadcast_to(mask, products(query, key).shape)[..., None], 1.0, 0.0)
    weights = softmax(np.where(mask, products(query, key), -1e30))
    hidden = kept.sum(axis=-2, keepdims=True)[..., 0] == 0
    kept = np.where(hidden[..., None], 1.0, kept)
    terms = np.where(kept > 0, weights[..., None] * value[..., None, :, :], 0.0)
    return np.asarray(terms.sum(axis=-2))


def nan_ranks_last(query: Array, key: Array, value: Array, *, k: int) -> Array:
    scores = products(query, key)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]  # which puts NaN behind all
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, order, True, axis=-1)
    return np.asarray(softmax(np.where(kept, scores, -np.inf)) @ value)


def mass_one_too_few(query: Array, key: Array, value: Array, p: float | None = None) -> Array:
    scores = products(query, key)
    if p is None:
        return np.asarray(softmax(scores) @ value)
    weights = -np.sort(-softmax(scores), axis=-1)
    least = np.where(np.cumsum(weights, axis=-1) <= p, weights, 2).min(axis=-1, keepdims=True)
    kept = softmax(scores) >= np.minimum(least, weights[..., :1])  # the last may overstep p
    return np.asarray(softmax(np.where(kept, scores, -np.inf)) @ value)


def mask_function_of_rows(query: Array, key: Array, value: Array, **options: Any) -> Array:
    scores = products(query, key)
    i, j = np.arange(query.shape[-2])[:, None], np.arange(key.shape[-2])
    allowed = options["mask"](i, j) if "mask" in options else True  # without the offset
    return np.asarray(softmax(np.where(allowed, scores, -np.inf)) @ value)


def alibi_of_earlier_keys(query: Array, key: Array, value: Array, bias: Any = None) -> Array:
    distance = np.arange(key.shape[-2]) - np.arange(query.shape[-2])[:, None]
    added = 0.0 if bias is None else bias.slopes[..., None, None] * distance  # without the size
    return np.asarray(softmax(products(query, key) + added) @ value)


def t5_bias_of_one_way(query: Array, key: Array, value: Array, bias: Any = None) -> Array:
    distance = np.arange(key.shape[-2]) - np.arange(query.shape[-2])[:, None]
    if bias is None:
        return np.asarray(softmax(products(query, key)) @ value)
    bucket = np.minimum(np.abs(distance), len(bias.table) - 1)
    return np.asarray(
        softmax(products(query, key) + np.moveaxis(bias.table[bucket], (0, 1), (-2, -1))) @ value
    )


def all_scores_at_once(query: Array, key: Array, value: Array, memory_budget: int = 0) -> Array:
    return np.asarray(softmax(products(query, key)) @ value)


def sums_by_worker(query: Array, key: Array, value: Array, workers: int = 1) -> Array:
    weights = softmax(products(query, key))
    parts = np.array_split(np.arange(key.shape[-2]), workers)
    return np.asarray(sum(weights[..., part] @ value[..., part, :] for part in parts))


class Grads(NamedTuple):
    query: Array
    key: Array
    value: Array


def chunks(query: Array) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, query.shape[-2], CHUNK)]


def kept(shape: tuple[int, ...], chunk: slice, dropout: Any) -> Array:
    """What dropout multiplies the weights of a chunk by."""
    if dropout is None:
        return np.ones(shape)
    rate, seed = dropout
    random = np.random.default_rng((seed, chunk.start)).random(shape)
    return np.where(random >= rate, 1 / (1 - rate), 0.0)


def chunked(query: Array, key: Array, value: Array, *, dropout: Any = None) -> Array:
    return chunked_fwd(query, key, value, dropout=dropout)[0]


def chunked_fwd(
    query: Array, key: Array, value: Array, *, dropout: Any = None
) -> tuple[Array, Any]:
    parts, factors = [], []
    for chunk in chunks(query):
        weights = softmax(products(query[..., chunk, :], key))
        factors.append(kept(weights.shape, chunk, dropout))
        parts.append((weights * factors[-1]) @ value)
    return np.concatenate(parts, axis=-2), (query, key, value, factors)


def chunked_bwd(
    residuals: Any, dout: Array, *, last_mask_for_all: bool = False, without_last_key: bool = False
) -> Grads:
    query, key, value, factors = residuals
    scale = query.shape[-1] ** -0.5
    dquery, dkey, dvalue = (np.zeros_like(array) for array in (query, key, value))
    for i, chunk in enumerate(chunks(query)):
        weights = softmax(products(query[..., chunk, :], key))
        rows = weights.shape[-2]
        factor = factors[-1 if last_mask_for_all else i][..., :rows, :]
        if factor.shape != weights.shape:  # the last chunk may be shorter
            factor = factors[i]
        dvalue += (weights * factor).mT @ dout[..., chunk, :]
        dweights = factor * (dout[..., chunk, :] @ value.mT)
        dscores = weights * (dweights - (weights * dweights).sum(axis=-1, keepdims=True))
        dquery[..., chunk, :] = scale * dscores @ key
        if not (without_last_key and chunk == chunks(query)[-1]):
            dkey += scale * dscores.mT @ query[..., chunk, :]
    return Grads(dquery, dkey, dvalue)


def last_dropout_reused_bwd(residuals: Any, dout: Array) -> Grads:
    return chunked_bwd(residuals, dout, last_mask_for_all=True)


def key_gradient_missing_a_chunk_bwd(residuals: Any, dout: Array) -> Grads:
    return chunked_bwd(residuals, dout, without_last_key=True)
