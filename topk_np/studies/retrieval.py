"""Search of MiniLM, with top-k, for the first half of a movie review by its second half."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from topk_np._plots import columns, curves, dense_line
from topk_np._process import UserError, describe_ks, markdown
from topk_np.models import bert
from topk_np.models.bert import Bert, BertConfig
from topk_np.models.load import load_named
from topk_np.models.tokenizers import Tokenizer
from topk_np.studies.reading import digest, with_setting
from topk_np.studies.runner import Point, Prepared, Result, Setting, Tick, dense_result
from topk_np.tasks.reviews import movie_reviews

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REVIEWS = 200
TOKENS = 256  # of each half, with the two markers around it
BATCH = 8  # halves in one pass
ATTENTION_KS = (128, 64, 32, 16, 8)
FFN_KS = (1024, 768, 512)

label = describe_ks


def prepare(model: str | None, /) -> Prepared:
    """Load the model and the reviews."""
    model = model or "minilm"
    loaded: Bert = load_named(model, BertConfig)
    halves = make_halves(loaded.tokenizer, movie_reviews())
    return Prepared(
        about={
            "model": model,
            "texts": "movie reviews",
            "reviews": len(halves),
            "length": TOKENS,
            "tokens": digest([halves]),
        },
        settings=list(settings()),
        measure=partial(measure, loaded, halves),
        steps=lambda setting: math.ceil(2 * len(halves) / BATCH),
    )


def settings() -> Iterator[Setting]:
    """The settings to measure with."""
    yield {}
    yield from ({"attention_k": k} for k in ATTENTION_KS)
    yield from ({"ffn_k": k} for k in FFN_KS)
    yield {"ffn_k": 512, "ffn_select": "score"}
    yield {"attention_k": 64, "ffn_k": 768}


def make_halves(tokenizer: Tokenizer, reviews: Sequence[str], /) -> np.ndarray:
    """
    The two halves of the beginnings of long reviews: token ids (R, 2, Q), markers around each.

    Raises
    ------
    UserError
        If there are too few reviews that are long enough.
    """
    inner = TOKENS - 2
    encoded = [tokenizer.encode(review) for review in reviews]
    long = [ids for ids in encoded if len(ids) >= 2 * inner + 2]
    if len(long) < REVIEWS:
        raise UserError(
            f"{REVIEWS} reviews must have {2 * inner} tokens or more, got {len(long)} such ones"
        )
    chosen = [long[i] for i in np.linspace(0, len(long) - 1, REVIEWS).astype(int)]
    first, last = chosen[0][:1], chosen[0][-1:]
    return np.stack(
        [
            [
                np.concatenate([first, ids[1 + start : 1 + start + inner], last])
                for start in (0, inner)
            ]
            for ids in chosen
        ]
    )


def measure(model: Bert, halves: np.ndarray, setting: Setting, tick: Tick, /) -> Result:
    """The rank of each first half among all when they are ordered by likeness to the second."""
    own = with_setting(model, setting)
    texts = halves.reshape(-1, halves.shape[-1])
    rows = []
    for start in range(0, len(texts), BATCH):
        rows.append(bert.pooled(own, bert.forward(own, texts[start : start + BATCH])))
        tick()
    vectors = np.concatenate(rows)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    alike = vectors[1::2] @ vectors[::2].T
    ranks = np.sum(alike > np.diagonal(alike)[:, None], axis=1)
    return {
        "top_1": float(np.mean(ranks == 0)),
        "recall_at_10": float(np.mean(ranks < 10)),
        "best": np.argmax(alike, axis=1).tolist(),
    }


def table(points: Sequence[Point], /) -> str:
    """The share of reviews whose right half is the best, among the ten best, or found by dense."""
    same = as_dense(points)
    head = [f"{TOKENS} tokens", "top-1", "recall@10", "top-1 as dense"]
    rows = [
        [
            label(point.setting),
            f"{point.result['top_1']:.3f}",
            f"{point.result['recall_at_10']:.3f}",
            "" if share is None else f"{share:.3f}",
        ]
        for point, share in zip(points, same, strict=True)
    ]
    return markdown(head, rows)


def as_dense(points: Sequence[Point], /) -> list[float | None]:
    """For each point the share of best halves that the dense model finds too, if it is there."""
    dense = dense_result(points)
    if dense is None:
        return [None] * len(points)
    return [float(np.mean(np.equal(point.result["best"], dense["best"]))) for point in points]


def draw(points: Sequence[Point], /) -> dict[str, Figure]:
    """The share that is found against the k of attention, and of feed-forward layers."""
    dense = dense_result(points)
    parts = [list(point.setting) for point in points]
    if dense is None or min(parts.count([part]) for part in ("attention_k", "ffn_k")) < 2:
        return {}
    figure, panels = columns(2)
    for axes, part, title in (
        (panels[0], "attention_k", f"Attention, of {TOKENS} keys"),
        (panels[1], "ffn_k", "Feed-forward, of 1,536 units"),
    ):
        alone = [point for point in points if list(point.setting) == [part]]
        series = {
            name: {point.setting[part]: point.result[key] for point in alone}
            for name, key in (("recall@10", "recall_at_10"), ("top-1", "top_1"))
        }
        if part == "ffn_k":
            series["top-1, by score"] = {
                point.setting[part]: point.result["top_1"]
                for point in points
                if point.setting.get("ffn_select") == "score"
            }
        curves(axes, series)
        dense_line(axes, dense["recall_at_10"], above=True)
        dense_line(axes, dense["top_1"], above=True)
        axes.set_title(title)
        axes.set_ylim(0, 1)
    return {"retrieval": figure}
