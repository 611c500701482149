"""Llama-family language models: forward, and the loss with its gradients, on any array library.

Shapes: `...` batch axes, Q positions, D model width, H heads, G groups of heads that share a key
and value, W head width, F feed-forward width, T tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from topk_np import KVCache, array_namespace, dense_attention, topk_attention
from topk_np._namespace import Array, compute_dtype
from topk_np.layers import embedding_bwd, embedding_fwd, linear, rms_norm_bwd, rms_norm_fwd
from topk_np.layers.rope import Rope, RopeLayout
from topk_np.models import names
from topk_np.models.blocks import Block, StackResiduals, stack, stack_bwd, stack_fwd
from topk_np.models.family import Decoder, Examples, Family, Fields, Layout, Name, check
from topk_np.models.model import (
    Keep,
    Model,
    Params,
    check_keep,
    check_ks,
    check_mask,
    check_tokens,
    kept_of,
    output_layer,
    wants,
)
from topk_np.models.one_row import one_row_linear
from topk_np.models.positions import Scaling, positions_of, read_rope, rotation_of
from topk_np.models.scoring import NextTokens, next_tokens
from topk_np.models.sublayers import CHUNK, Attention, Heads, Units
from topk_np.models.token_loss import (
    IGNORED,
    TokenLossResiduals,
    token_loss_bwd,
    token_loss_fwd,
)
from topk_np.schedule.threads import WorkerTeam, lasting
from topk_np.training.trees import flatten

__all__ = ["LlamaConfig", "causal_attention", "forward", "logits", "loss_bwd", "loss_fwd"]


@dataclass(frozen=True)
class LlamaConfig:
    """Numbers and rules of a Llama model that cannot be read off its weights.

    Attributes
    ----------
    heads, groups : int
        Query heads H, and groups G that share one key and value head.
    norm_eps : float
        Added to the mean square in RMSNorm.
    rope_base : float
        Base of the rotary positions' wavelengths.
    rope_layout : {"half", "interleaved"}
        The two features that form a rotated pair: i and i + W/2 (safetensors checkpoints), or
        2i and 2i + 1 (GGUF files).
    context : int
        Longest sequence that the model is meant for.
    scaling : Scaling, optional
        The rule by which rotary positions are stretched: see `topk_np.models.positions`.
    windows : tuple of int or None, optional
        For each layer the number of positions that a query sees, itself and those before it; None:
        all. By default all layers see all positions.
    unturned : tuple of int, optional
        Numbers of the layers without rotary positions.
    """

    heads: int
    groups: int
    norm_eps: float
    rope_base: float
    rope_layout: RopeLayout
    context: int
    scaling: Scaling | None = None
    windows: tuple[int | None, ...] = ()
    unturned: tuple[int, ...] = ()


Llama: TypeAlias = Model[LlamaConfig]
"""
Its parameters: ``embedding`` (T, D), ``layers``, ``norm`` (D,), and ``head`` (T, D) if that is not
tied to the embedding. A layer has ``attention_norm`` (D,), ``attention`` with ``query`` (H W, D),
``key`` and ``value`` (G W, D) and ``out`` (D, H W), ``ffn_norm`` (D,), and ``ffn`` with ``keys``,
``values`` and ``gate`` (F, D), as `topk_ffn` wants them: a row for each unit. Some models have
biases, ``query_bias``, ``gate_bias`` and so on, and norms of queries and keys, ``query_norm`` and
``key_norm`` (W,).
"""

DEFAULTS: dict[str, dict[str, Any]] = {  # of fields that a config may lack, by model_type
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "smollm3": {"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
}
DEFAULTS["qwen3"] = DEFAULTS["qwen2"] | {"head_dim": 128}
HARMLESS = {
    "attention_dropout": "there is no dropout in inference, nor in training here",
    "is_llama_config": "says what model_type says",
    "max_sequence_length": "is what max_position_embeddings is, under an older name",
    "pretraining_tp": "says how matrices were split in training; the products are the same",
    "transformers.js_config": "is about another library",
}


def layout(fields: Fields, tensors: Collection[str], /) -> Layout:
    """
    Read the config of a checkpoint of one of the types in `DEFAULTS`.

    Raises
    ------
    ValueError
        If a field is missing, or the model has a part that is not computed here.
    """
    kind = fields["model_type"]
    fields.set_defaults(DEFAULTS[kind])
    check("hidden_act", fields.get("hidden_act", "silu"), "silu")
    check("is_causal", fields.get("is_causal", True), True)
    for name in ("use_mrope", "rope_interleaved"):
        check(name, fields.get(name, False), None, False)
    heads = fields.number("num_attention_heads")
    groups = fields.number("num_key_value_heads", heads)
    if heads % groups:
        raise ValueError(f"the key heads must divide the {heads} query heads, got {groups}")
    width = fields.number("hidden_size")
    head = fields.number("head_dim", max(1, width // heads))
    if head % 2 or head < 4:
        raise ValueError(f"head_dim must be even and at least 4 for this reader, got {head}")
    base, scaling = read_rope(fields, base=10_000.0)
    depth = fields.depth("num_hidden_layers", tensors)
    unturned = _unturned(kind, fields, depth)
    tied = fields.flag("tie_word_embeddings", False)
    context = fields.number("max_position_embeddings")
    return Layout(
        LlamaConfig(
            heads=heads,
            groups=groups,
            norm_eps=fields.positive("rms_norm_eps"),
            rope_base=base,
            rope_layout="half",
            context=context if scaling is None else scaling.reach(context),
            scaling=scaling,
            windows=_windows(kind, fields, depth, unturned),
            unturned=unturned,
        ),
        tensor_names(tensors, depth, tied=tied, layer=_layer(kind, fields)),
        sizes={
            "T": fields.number("vocab_size"),
            "D": width,
            "F": fields.number("intermediate_size"),
            "Q": heads * head,
            "K": groups * head,
            "W": head,
        },
        # the first follows from the config
        ignored=(r".*rotary_emb\.inv_freq", *((r"lm_head\.weight",) if tied else ())),
    )


def _layer(kind: str, fields: Fields) -> dict[str, tuple[str, str]]:
    """The tensors of a layer."""
    layer = dict(names.LLAMA)
    if kind == "qwen2":
        layer |= names.LLAMA_INPUT_BIASES
    elif fields.flag("attention_bias", False):
        check("attention_bias", kind == "mistral", False)
        layer |= {**names.LLAMA_INPUT_BIASES, **names.LLAMA_OUTPUT_BIAS}
    if fields.flag("mlp_bias", False):
        check("mlp_bias", kind not in ("llama", "smollm3"), False)
        layer |= names.LLAMA_FFN_BIASES
    return {**layer, **names.LLAMA_HEAD_NORMS} if kind == "qwen3" else layer


def _unturned(kind: str, fields: Fields, depth: int) -> tuple[int, ...]:
    """The layers without rotary positions."""
    if kind != "smollm3":
        return ()
    step = fields.number("no_rope_layer_interval", 4)
    turned = fields.get("no_rope_layers")  # 1 for a layer with rotary positions
    if turned is None:
        turned = [int((i + 1) % step != 0) for i in range(depth)]
    if not isinstance(turned, list) or len(turned) < depth or not {*turned} <= {0, 1}:
        raise ValueError(f"no_rope_layers must have a 0 or 1 for each layer, got {turned!r:.60}")
    return tuple(i for i in range(depth) if not turned[i])


def _windows(
    kind: str, fields: Fields, depth: int, unturned: tuple[int, ...]
) -> tuple[int | None, ...]:
    """The number of positions that each layer sees; none at all if every layer sees all."""
    if kind == "llama":
        return ()
    size = fields.get("sliding_window")
    window = None if size is None else fields.number("sliding_window")
    if kind == "mistral":
        return () if window is None else (window,) * depth
    if not fields.flag("use_sliding_window", False):
        window = None
    if kind == "smollm3":
        fields.get("max_window_layers")  # is in its published config, and not in its code
        narrow = [i in unturned for i in range(depth)]
    else:
        narrow = [i >= fields.whole("max_window_layers") for i in range(depth)]
    types = fields.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) < depth:
            raise ValueError(f"layer_types must have an entry for each layer, got {types!r:.60}")
        for i, name in enumerate(types):
            check(f"layer_types[{i}]", name, "full_attention", "sliding_attention")
        narrow = [name == "sliding_attention" for name in types[:depth]]
        if window is None and any(narrow):
            raise ValueError("sliding_window must be a number where layer_types has layers with it")
    windows = tuple(window if own else None for own in narrow)
    return windows if any(windows) else ()


def tensor_names(
    tensors: Collection[str],
    depth: int,
    /,
    *,
    tied: bool,
    layer: Mapping[str, tuple[str, str]] = names.LLAMA,
) -> list[Name]:
    """The tensor of each parameter; a model without a head has no prefix before its names."""
    prefix = "" if "embed_tokens.weight" in tensors else "model."
    found = [Name("embedding", f"{prefix}embed_tokens.weight", "T D")]
    for i in range(depth):
        for path, (tensor, shape) in layer.items():
            full = f"{prefix}layers.{i}.{tensor}"
            found.append(Name(f"layers.{i}.{path}", full, shape, path == "ffn.values"))
    found.append(Name("norm", f"{prefix}norm.weight", "D"))
    return found if tied else [*found, Name("head", "lm_head.weight", "T D")]


def causal_attention(
    query: Array,
    key: Array,
    value: Array,
    /,
    *,
    k: int | None,
    mask: Array | None = None,
    window: int | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Causal attention: top-k, or dense where `k` is None.

    The queries are the last Q of the N positions of keys and values. Keys where `mask` (..., N) is
    False are hidden; with a `window` each query sees that many positions, up to its own.
    """
    options: dict[str, Any] = {"workers": workers}
    if query.shape[-2] == 1:
        # The last position sees every key: the heads of a group are queries of one head.
        xp = array_namespace(query)
        if window is not None:
            key, value = key[..., -window:, :], value[..., -window:, :]
            mask = None if mask is None else mask[..., -window:]
        if mask is not None:
            options["mask"] = mask[..., None, None, None, :]
        heads = xp.moveaxis(query, -2, -3)
        if k is None or k >= key.shape[-2]:  # the second gives the same with less work
            out = dense_attention(heads, key, value, **options)
        else:
            out = topk_attention(heads, key, value, k=k, **options)
        return xp.moveaxis(out, -3, -2)
    options |= _options(key.shape[-2] - query.shape[-2], mask, window)
    if k is None or k >= key.shape[-2]:
        return dense_attention(query, key, value, chunk_size=CHUNK, **options)
    return topk_attention(query, key, value, k=k, **options)


def _options(first: int, mask: Array | None, window: int | None) -> dict[str, Any]:
    """Options of attention on grouped heads (..., G, H/G, Q, W)."""
    options: dict[str, Any] = {"is_causal": True, "query_offset": first}
    if mask is not None:
        options["mask"] = mask[..., None, None, None, :]
    if window is not None:
        options["window"] = (window - 1, 0)
    return options


def _blocks(
    model: Llama,
    tokens: Array,
    first: int,
    workers: int | Executor | None,
    *,
    mask: Array | None = None,
    positions: Array | None = None,
    attention: Attention | None = None,
    backward: bool = False,
) -> list[Block]:
    """The blocks for `tokens`, before which there are `first`; residuals only for `backward`."""
    config, table = model.config, model.params["embedding"]
    rotation = rotation_of(
        positions_of(tokens, first, mask, positions),
        Rope(config.rope_base, config.rope_layout),
        config.scaling,
        model.params["layers"]["0"]["attention"]["query"].shape[0] // config.heads,
        compute_dtype(array_namespace(table), table),
    )
    windows = config.windows or (None,) * len(model.params["layers"])
    blocks = []
    for i, (k, units) in enumerate(check_ks(model)):
        attend = attention
        hidden: dict[str, Any] = {"mask": mask, "window": windows[i]}
        if attention is not None and (mask is not None or windows[i] is not None):
            attend = partial(attention, **hidden)
        elif attention is None and not backward:
            attend = partial(causal_attention, k=k, workers=workers, **hidden)
        heads = Heads(
            config.heads,
            config.groups,
            k,
            {"workers": workers, **_options(first, **hidden)},
            None if i in config.unturned else rotation,
            attend=attend,
            norm_eps=config.norm_eps,
        )
        ffn = Units("silu", units, model.ffn_select, workers)
        blocks.append(Block(config.norm_eps, heads, ffn))
    return blocks


def forward(
    model: Llama,
    tokens: Array,
    /,
    *,
    mask: Array | None = None,
    positions: Array | None = None,
    attention: Attention | None = None,
    caches: Sequence[KVCache] | None = None,
    workers: int | Executor | None = None,
) -> Array:
    """
    Hidden states after the last block and its norm.

    Parameters
    ----------
    model : Llama
        The model.
    tokens : integer array (..., Q)
        Token ids.
    mask : bool array (..., N), optional
        False at padding, which no position attends to; all are True by default. N is Q, or with
        `caches` the number of all positions. Rows at padding are to be ignored.
    positions : integer array (Q,) or (..., Q), optional
        The position of each token. By default they count from 0, with `caches` from the number of
        positions these hold; with a `mask` only positions where it is True are counted.
    attention : callable, optional
        Used in place of the library's causal attention, called once a layer, first layer first,
        with query (..., G, H/G, Q, W) and key and value (..., G, 1, N, W); the queries are the last
        Q of the N positions. Where there is a mask, or the layer has a window, it is also given the
        options `mask` and `window` of `causal_attention`.
    caches : sequence of KVCache, optional
        One a layer, all of one length. The keys and values of `tokens` are appended, and `tokens`
        attend to all that is there.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    array (..., Q, D)
        Of the weights' dtype.

    Raises
    ------
    TypeError
        If the tokens are not integers, or not of the weights' array library, the mask is not
        boolean, or a k is not an integer.
    ValueError
        If a token is outside the vocabulary, the mask or the positions do not fit the tokens, a k
        is below 1 or does not fit the layers, both
        `attention` and the model's `attention_k` are given, or the caches do not fit the model or
        each other.

    Notes
    -----
    Memory is linear in Q, dense or top-k.
    """
    check_tokens(model.params["embedding"], tokens)
    if attention is not None and model.attention_k is not None:
        raise ValueError(
            f"attention_k must be None where attention is given, got {model.attention_k}"
        )
    first = 0 if caches is None else _cached_length(caches, len(model.params["layers"]))
    blocks = _blocks(
        model, tokens, first, workers, mask=mask, positions=positions, attention=attention
    )
    x, _ = embedding_fwd(tokens, model.params["embedding"])
    x = stack(
        blocks,
        x,
        model.params["layers"],
        caches=None if caches is None else [(cache,) for cache in caches],
    )
    return rms_norm_fwd(x, model.params["norm"], eps=model.config.norm_eps)[0]


def _cached_length(caches: Sequence[KVCache], layers: int) -> int:
    """The number of positions that every one of the caches holds."""
    lengths = sorted({len(cache) for cache in caches})
    if len(caches) != layers:
        raise ValueError(f"caches must be one for each of {layers} layers, got {len(caches)}")
    if len(lengths) > 1:
        raise ValueError(f"caches must all have the same length, got {lengths}")
    return lengths[0]


def logits(model: Llama, hidden: Array, /) -> Array:
    """Unnormalised log probabilities (..., Q, T) of the next token from `hidden` (..., Q, D)."""
    return linear(hidden, output_layer(model))


@dataclass(frozen=True, eq=False)
class LlamaLossResiduals:
    """The residuals of `loss_fwd`, step by step."""

    embedding: Any = field(repr=False)
    stack: StackResiduals = field(repr=False)
    norm: Any = field(repr=False)
    head: TokenLossResiduals = field(repr=False)
    paths: frozenset[str] = field(repr=False)
    """Of all weights; without "head" the output layer is the embedding."""


def loss_fwd(
    model: Llama,
    tokens: Array,
    labels: Array | None = None,
    /,
    *,
    mask: Array | None = None,
    recompute: bool = False,
    workers: int | Executor | None = None,
) -> tuple[Array, LlamaLossResiduals]:
    """
    Next-token loss, and the residuals that `loss_bwd` needs.

    Parameters
    ----------
    model : Llama
        The model.
    tokens : integer array (..., Q)
        Token ids, at least 2.
    labels : integer array (..., Q), optional
        The token that should stand at each position; -100 does not count. By default `tokens`,
        except those at padding or right after it.
    mask : bool array (..., Q), optional
        As for `forward`.
    recompute : bool, default False
        Keep the inputs of the blocks only, and compute each block again in the backward pass: a
        third more time, and memory for the residuals of one block.
    workers : int or concurrent.futures.Executor, optional
        Threads, passed on.

    Returns
    -------
    loss : array ()
        The mean of -log probability over the labels that count.
    residuals : LlamaLossResiduals
        For `loss_bwd`.

    Raises
    ------
    TypeError, ValueError
        As `forward`, and if the labels do not fit the tokens.

    Notes
    -----
    Logits are computed a few positions at a time, here and in the backward pass.
    """
    params, eps = model.params, model.config.norm_eps
    check_tokens(params["embedding"], tokens, least=2)
    blocks = _blocks(model, tokens, 0, workers, mask=mask, backward=True)
    if labels is None:
        labels = tokens
        if mask is not None:
            xp = array_namespace(tokens)
            known = xp.concat([mask[..., :1], mask[..., 1:] & mask[..., :-1]], axis=-1)
            labels = xp.where(known, tokens, xp.full_like(tokens, IGNORED))
    # 1 x = embedding of the tokens
    # 2 x = blocks(x)
    # 3 hidden = norm(x)
    # 4 loss of the label that follows each position
    x, embedded = embedding_fwd(tokens, params["embedding"])
    x, stacked = stack_fwd(blocks, x, params["layers"], recompute=recompute)
    hidden, normed = rms_norm_fwd(x, params["norm"], eps=eps)
    loss, head = token_loss_fwd(hidden[..., :-1, :], labels[..., 1:], output_layer(model))
    return loss, LlamaLossResiduals(embedded, stacked, normed, head, frozenset(flatten(params)))


def loss_bwd(
    residuals: LlamaLossResiduals, dout: float = 1.0, /, *, keep: Keep | None = None
) -> Params:
    """
    Gradients of `loss_fwd`, in the structure of the model's parameters.

    Parameters
    ----------
    residuals : LlamaLossResiduals
        From `loss_fwd`.
    dout : float, default 1.0
        Gradient with respect to the loss.
    keep : mapping from str to callable, optional
        The weights whose gradients are wanted, by their paths such as "layers.0.ffn.keys", each
        with a function: its result is kept in place of the gradient, block by block. By default
        all gradients, as they are.

    Raises
    ------
    ValueError
        If `keep` has a path that is not that of a weight of the model.
    """
    check_keep(keep, residuals.paths)
    tied = "head" not in residuals.paths
    head = "embedding" if tied else "head"
    # 4
    grads = token_loss_bwd(residuals.head, dout, of_head=wants(keep, head))
    xp = array_namespace(grads.hidden)
    dhidden = xp.concat([grads.hidden, xp.zeros_like(grads.hidden[..., :1, :])], axis=-2)
    # 3
    dx, dnorm = rms_norm_bwd(residuals.norm, dhidden)
    # 2
    stacked = stack_bwd(residuals.stack, dx, keep)
    # 1
    ends: Params = {"norm": dnorm}
    if wants(keep, "embedding"):
        ends["embedding"] = embedding_bwd(residuals.embedding, stacked.x)
    if wants(keep, head):
        ends[head] = ends[head] + grads.head if tied else grads.head
    found = kept_of(ends, keep)
    if stacked.layers:
        found["layers"] = stacked.layers
    return {name: found[name] for name in ("embedding", "layers", "norm", "head") if name in found}


def _decoder(
    model: Llama, tokens: Array, /, *, mask: Array | None, workers: int | Executor | None
) -> Decoder:
    """The model about to continue `tokens`, with caches of the keys and values."""
    check_tokens(model.params["embedding"], tokens)
    check_ks(model)
    caches = [KVCache() for _ in model.params["layers"]]
    pool, xp, seen = lasting(workers), array_namespace(tokens), mask
    if mask is not None:
        check_mask("mask", mask, tokens)
        if not bool(xp.all(mask[..., -1])):
            raise ValueError("mask must be True at the last token of each prompt: pad on the left")

    def scores(new: Array) -> Array:
        nonlocal seen
        options: dict[str, Any] = {"caches": caches}
        if seen is not None:
            if len(caches[0]):
                seen = xp.concat([seen, xp.ones_like(seen[..., -1:])], axis=-1)
            options["mask"] = seen
        if new.shape[-1] > 1:
            hidden = forward(model, new, workers=workers, **options)
            return logits(model, hidden[..., -1:, :])
        # BLAS's own threads would wait busily for the next product, in the way of ours.
        with WorkerTeam(pool):
            hidden = forward(model, new, workers=pool, **options)
            return one_row_linear(hidden, output_layer(model), pool)

    return Decoder(tokens, scores, model.config.context - tokens.shape[-1])


def _examples(model: Llama, tokens: np.ndarray, rng: np.random.Generator, /) -> Examples:
    """Plain text as it is: every token but the first is to be predicted."""
    return Examples((tokens,), tokens[..., 1:].size)


def _guess(model: Llama, tokens: Array, /) -> tuple[NextTokens, Array]:
    return next_tokens(model, forward(model, tokens), tokens), tokens[..., 1:]


FAMILY = Family(
    kind=LlamaConfig,
    types=tuple(DEFAULTS),
    layout=layout,
    harmless=HARMLESS,
    check_ks=check_ks,
    loss_fwd=loss_fwd,
    loss_bwd=loss_bwd,
    examples=_examples,
    guess=_guess,
    decoder=_decoder,
    context=lambda model: model.config.context,
)
