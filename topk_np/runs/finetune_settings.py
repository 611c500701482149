"""What a run of fine-tuning depends on, but for how long it lasts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topk_np.runs.settings import Saved


@dataclass(frozen=True)
class Settings(Saved):
    """All that two runs must share to give the same numbers, bit for bit."""

    model: str = "smollm2"
    text: tuple[str, ...] = ()
    """Files; none: Python's documentation."""
    attention_k: int | None = None
    ffn_k: int | None = None
    lora: int | None = None
    """The rank of the updates that are learned; None: the weights themselves are."""
    only: tuple[str, ...] = ()
    """Patterns of the paths of what is trained; none: all weights, or all matrices of the blocks"""
    batch: int = 2
    length: int = 512
    learning_rate: float = 1e-3
    seed: int = 0
    recompute: bool = False

    WARMUP = 5
    """Steps in which the learning rate rises; it is constant then, so any run can be prolonged."""
    WEIGHT_DECAY = 0.0
    CLIP = 1.0
    """The largest norm of all gradients together."""

    @property
    def name(self) -> str:
        """Model and method, as folders are called."""
        ks = (("attention", self.attention_k), ("ffn", self.ffn_k))
        kept = "".join(f"-{what}{k}" for what, k in ks if k is not None) or "-dense"
        rank = "" if self.lora is None else f"-lora{self.lora}"
        path = Path(self.model)
        model = path.stem if path.suffix == ".gguf" else path.name  # a folder's may have dots
        return f"{model}{kept}{rank}-seed{self.seed}"
