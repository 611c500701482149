"""What a run of training depends on, but for how long it lasts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Protocol, TypeVar

Own = TypeVar("Own", bound="Saved")


class RunSettings(Protocol):
    """What the training loop needs of the settings of a run."""

    @property
    def learning_rate(self) -> float:
        """Of AdamW."""
        ...

    def dumps(self) -> str:
        """As JSON."""
        ...


@dataclass(frozen=True)
class Saved:
    """Settings that are saved with a checkpoint and compared with those of another run."""

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls: type[Own], text: str) -> Own:
        """From JSON, whose lists were tuples."""
        found = json.loads(text)
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in found.items()})

    def differences(self, other: Saved) -> list[str]:
        """Names of the settings that differ."""
        return [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


@dataclass(frozen=True)
class Settings(Saved):
    """All that two runs must share to give the same numbers, bit for bit."""

    task: str
    attention: str = "dense"
    k: int = 16
    """Keys kept for each query, in top-k attention."""
    ffn_k: int | None = None
    """Feed-forward units kept for each token; None: all."""
    seed: int = 0
    batch: int = 32
    learning_rate: float = 1e-3
    layers: int = 2
    width: int = 64
    heads: int = 4
    hidden: int = 256
    """Units of a feed-forward layer."""
    features: int = 64
    """Random features of a head, in Performer and RFA."""
    recompute: bool = False
    """Whether the backward pass makes the activations of a block again instead of keeping them."""

    WARMUP = 100
    """Steps in which the learning rate rises; it is constant then, so any run can be prolonged."""
    WEIGHT_DECAY = 0.01
    AVERAGE = 0.995
    """
    How much of the running mean of the parameters stays in each step. What is tested is this mean:
    it does for accuracy what a falling learning rate does, and needs no end that is known before.
    """
    CLIP = 1.0
    """The largest norm of all gradients together."""
    CHUNK = 64
    """Queries at once in chunked attention."""

    @property
    def name(self) -> str:
        """Task and method, as files are called."""
        method = f"topk{self.k}" if self.attention == "topk" else self.attention
        units = "" if self.ffn_k is None else f"-ffn{self.ffn_k}"
        return f"{self.task}-{method}{units}-seed{self.seed}"
