"""
Peers on PyTorch: attention, a step of training, and a Llama of transformers with our weights.

Importing this module imports torch, and gives it every core that we use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from topk_np.bench.cases import ATTENTION, Case, Inputs, Runs
from topk_np.bench.step import (
    CLASSES,
    HIDDEN,
    LAYERS,
    LEARNING_RATE,
    VOCABULARY,
    WEIGHT_DECAY,
    make_batch,
)
from topk_np.models import names
from topk_np.models.family import scatter
from topk_np.models.llama import Llama, LlamaConfig, tensor_names
from topk_np.schedule.threads import available_cores
from topk_np.training.trees import flatten

PAPER_CHUNK = 1024  # queries, as in the paper's experiments
GATHER_CHUNK = 256
PLAIN = ("heads", "groups", "norm_eps", "rope_base", "rope_layout", "context")
"""The fields of a `LlamaConfig` that the first Llama has."""

torch.set_num_threads(available_cores())

Tensor = Any
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(case: Case, inputs: Inputs) -> Runs:
    """PyTorch's fused attention, which it uses for arrays with a batch axis alone."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query[None], key[None], value[None], is_causal=case.causal)[0]

    return _runs(function, inputs)


def dense(case: Case, inputs: Inputs) -> Runs:
    """Dense, written out, all scores at once; gradients by autograd."""

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _activation(case, _scores(case, query, key, 0)) @ value

    return _runs(function, inputs)


def paper(case: Case, inputs: Inputs) -> Runs:
    """The paper's algorithm: k scores and indices are kept, products are dense."""
    return _runs(lambda *arrays: _Paper.apply(*arrays, case), inputs)


def gather(case: Case, inputs: Inputs) -> Runs:
    """torch.topk, then products with gathered rows."""
    return _runs(lambda *arrays: _Gather.apply(*arrays, case), inputs)


def _runs(function: Function, inputs: Inputs) -> Runs:
    query, key, value, dout = map(torch.from_numpy, inputs)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(query, key, value)

    def both() -> tuple[Tensor, ...]:
        leaves = [array.detach().requires_grad_() for array in (query, key, value)]
        out = function(*leaves)
        out.backward(dout)
        return out.detach(), *(leaf.grad for leaf in leaves)

    return Runs(forward, both)


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _scores(case: Case, query: Tensor, key: Tensor, first: int) -> Tensor:
    """(heads, C, N), for queries from position `first` on."""
    scores = query @ key.mT
    if case.kind == ATTENTION:
        scores = scores * case.scale
    if case.causal:
        positions = torch.arange(first, first + scores.shape[1])
        later = torch.arange(scores.shape[2]) > positions[:, None]
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _activation(case: Case, scores: Tensor) -> Tensor:
    return scores.softmax(-1) if case.kind == ATTENTION else scores.relu()


def _activation_backward(case: Case, weights: Tensor, dweights: Tensor) -> Tensor:
    if case.kind != ATTENTION:
        return dweights * (weights > 0)
    return weights * (dweights - (weights * dweights).sum(-1, keepdim=True)) * case.scale


def _chunks_kept(ctx: Any, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, weights and indices of each chunk, from what the forward pass saved."""
    kept = ctx.saved_tensors[3:]
    rows = _chunks(ctx.case.queries, size)
    for chunk, best, indices in zip(rows, kept[0::2], kept[1::2], strict=True):
        yield chunk, _activation(ctx.case, best), indices


class _Paper(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    """
    Top-k for each chunk of queries, as Gupta et al. 2021 describe it in section 2.

    The backward pass makes a dense C x N matrix of the weights, and another of their gradient.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, case: Case) -> Tensor:
        pieces, kept = [], []
        for rows in _chunks(case.queries, PAPER_CHUNK):
            scores = _scores(case, query[:, rows], key, rows.start)
            best, indices = scores.topk(case.k)
            weights = torch.zeros_like(scores).scatter_(-1, indices, _activation(case, best))
            pieces.append(weights @ value)
            kept += [best, indices]
        ctx.case = case
        ctx.save_for_backward(query, key, value, *kept)
        return torch.cat(pieces, 1)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> Any:
        query, key, value = ctx.saved_tensors[:3]
        dquery, dkey, dvalue = map(torch.zeros_like, (query, key, value))
        for rows, weights, indices in _chunks_kept(ctx, PAPER_CHUNK):
            dout = douts[0][:, rows]
            shape = (*dout.shape[:2], ctx.case.keys)
            dvalue += dout.new_zeros(shape).scatter_(-1, indices, weights).mT @ dout
            dweights = (dout @ value.mT).gather(-1, indices)
            dbest = _activation_backward(ctx.case, weights, dweights)
            dscores = dout.new_zeros(shape).scatter_(-1, indices, dbest)
            dquery[:, rows] = dscores @ key
            dkey += dscores.mT @ query[:, rows]
        return dquery, dkey, dvalue, None


class _Gather(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    """Top-k for each chunk of queries; the k rows of each query are gathered, (C, k, V)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, case: Case) -> Tensor:
        pieces, kept = [], []
        for rows in _chunks(case.queries, GATHER_CHUNK):
            scores = _scores(case, query[:, rows], key, rows.start)
            best, indices = scores.topk(case.k, sorted=False)
            weights = _activation(case, best)
            pieces.append((weights[..., None, :] @ _gathered(value, indices)).squeeze(-2))
            kept += [best, indices]
        ctx.case = case
        ctx.save_for_backward(query, key, value, *kept)
        return torch.cat(pieces, 1)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> Any:
        query, key, value = ctx.saved_tensors[:3]
        dquery, dkey, dvalue = map(torch.zeros_like, (query, key, value))
        for rows, weights, indices in _chunks_kept(ctx, GATHER_CHUNK):
            dout = douts[0][:, rows]
            _add_rows(dvalue, indices, weights, dout)
            dweights = (_gathered(value, indices) @ dout[..., None]).squeeze(-1)
            dbest = _activation_backward(ctx.case, weights, dweights)
            dquery[:, rows] = (dbest[..., None, :] @ _gathered(key, indices)).squeeze(-2)
            _add_rows(dkey, indices, dbest, query[:, rows])
        return dquery, dkey, dvalue, None


def _gathered(matrix: Tensor, indices: Tensor) -> Tensor:
    """(heads, C, k, V): the rows of matrix (heads, N, V) that each query keeps."""
    heads = torch.arange(len(matrix))[:, None, None]
    return matrix[heads, indices]


def _add_rows(out: Tensor, indices: Tensor, weights: Tensor, rows: Tensor) -> None:
    """``out[indices] += weights rows``, for each head."""
    for head, (where, factors, vectors) in enumerate(zip(indices, weights, rows, strict=True)):
        terms = factors[..., None] * vectors[:, None, :]
        out[head].index_add_(0, where.reshape(-1), terms.flatten(0, 1))


class Classifier(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """The model of `topk_np.bench.step` in PyTorch's own modules."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(VOCABULARY, case.width)
        self.positions = torch.nn.Embedding(case.keys, case.width)
        block = torch.nn.TransformerEncoderLayer(
            case.width, case.heads, HIDDEN, dropout=0.0, batch_first=True, norm_first=True
        )
        norm = torch.nn.LayerNorm(case.width)
        self.blocks = torch.nn.TransformerEncoder(block, LAYERS, norm, enable_nested_tensor=False)
        self.head = torch.nn.Linear(case.width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of each class, for tokens (B, N)."""
        rows = self.blocks(self.tokens(tokens) + self.positions.weight)
        return self.head(rows.mean(1))


def step(case: Case, inputs: Inputs) -> Runs:
    """A step of training with PyTorch's fused dense attention, on one thread as ours."""
    torch.manual_seed(0)
    tokens, labels = map(torch.from_numpy, make_batch(case))
    model = Classifier(case)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def one() -> tuple[float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            optimiser.zero_grad()
            loss: Tensor = torch.nn.functional.cross_entropy(model(tokens), labels)
            loss.backward()
            optimiser.step()
        finally:
            torch.set_num_threads(threads)
        return (loss.item(),)

    return Runs(one, one)


class Transformers:
    """
    The same model, computed by transformers in float32.

    Parameters
    ----------
    model : Llama
        Our model.
    threads : int
        Threads of PyTorch in the whole process.

    Raises
    ------
    ValueError
        If the model has more than the first Llama: biases, windows, scaled positions and so on.
    """

    def __init__(self, model: Llama, threads: int) -> None:
        import transformers

        torch.set_num_threads(threads)
        params, config = model.params, model.config
        layers = params["layers"]
        plain = LlamaConfig(*(getattr(config, name) for name in PLAIN))
        if config != plain or flatten(layers["0"]).keys() != names.LLAMA.keys():
            raise ValueError("the model must have no more than the first Llama for this comparison")
        tied = "head" not in params
        self._model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=params["embedding"].shape[0],
                hidden_size=params["embedding"].shape[1],
                intermediate_size=layers["0"]["ffn"]["keys"].shape[0],
                num_hidden_layers=len(layers),
                num_attention_heads=config.heads,
                num_key_value_heads=config.groups,
                head_dim=layers["0"]["attention"]["query"].shape[0] // config.heads,
                max_position_embeddings=config.context,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
                tie_word_embeddings=tied,
            )
        ).eval()
        tensors = scatter(params, tensor_names([], len(layers), tied=tied))
        if config.rope_layout == "interleaved":
            for name, tensor in tensors.items():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    query = name.endswith("q_proj.weight")
                    tensors[name] = _halves(tensor, config.heads if query else config.groups)
        if tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        self._model.load_state_dict(
            {name: torch.tensor(np.asarray(tensor, np.float32)) for name, tensor in tensors.items()}
        )

    def forward(self, tokens: np.ndarray, /) -> np.ndarray:
        """Hidden states (Q, D) of tokens (Q,), after the last norm."""
        with torch.no_grad():
            found = self._model.model(
                torch.tensor(tokens[None], dtype=torch.int64), use_cache=False
            )
        return np.asarray(found.last_hidden_state[0].numpy())

    def logits(self, tokens: np.ndarray, /) -> np.ndarray:
        """Logits (Q, T) of what follows each of tokens (Q,)."""
        with torch.no_grad():
            found = self._model(torch.tensor(tokens[None], dtype=torch.int64), use_cache=False)
        return np.asarray(found.logits[0].numpy())


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection, from the interleaved to the half-split rotary layout."""
    width = weight.shape[0] // heads
    pairs = weight.reshape(heads, width // 2, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
