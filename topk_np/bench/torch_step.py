"""The training step of `topk_np.bench.step` in PyTorch's own modules."""

from __future__ import annotations

from typing import Any

import torch

from topk_np.bench.cases import Case, Inputs
from topk_np.bench.runs import Runs
from topk_np.bench.step import (
    CLASSES,
    HIDDEN,
    LAYERS,
    LEARNING_RATE,
    VOCABULARY,
    WEIGHT_DECAY,
    make_batch,
)

Tensor = Any


class Classifier(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Embeddings, pre-norm encoder blocks, a last norm, the mean over the tokens, a head."""

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


def dense(case: Case, inputs: Inputs) -> Runs:
    """With dense attention, PyTorch's fused one, on one thread as ours."""
    torch.manual_seed(0)
    tokens, labels = map(torch.from_numpy, make_batch(case))
    model = Classifier(case)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step() -> tuple[float]:
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

    return Runs(step, step)
