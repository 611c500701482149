"""
The memory of a deep model: 12 blocks forward and backward, with each way to attend.

A run has a process of its own, and its memory is the growth of that process's peak once everything
is imported. All runs recompute each block in the backward pass, and release what is no longer
needed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np

from topk_np._process import RunFailed, Tick, peak_memory, run_alone
from topk_np.bench.sweep import Limits
from topk_np.chunking import DEFAULT_MEMORY_BUDGET
from topk_np.layers import BlockConfig, encoder_block_bwd, encoder_block_fwd

MEBI = 2**20
LENGTHS = (512, 1024, 2048, 4096, 8192)
LONGEST_DENSE = 4096
FFN_CHUNK = 256  # tokens at once in a dense feed-forward layer: scratch of about 64 MiB
K, FFN_K = 64, 512


class Model(NamedTuple):
    """The sizes of the paper's model; one sequence at a time, causal, float32."""

    layers: int = 12
    width: int = 768
    hidden: int = 3072
    heads: int = 12


PAPER = Model()
SMALL = Model(1, 24, 48, 12)  # of the run that loads whatever is loaded on first use


@dataclass(frozen=True)
class Method:
    """One way to compute the blocks."""

    name: str
    what: str
    fields: dict[str, Any]
    """Of `BlockConfig`."""
    quadratic: bool = False
    """Whether its memory is, so that it stops at `LONGEST_DENSE`."""

    def config(self, model: Model) -> BlockConfig:
        """How a block computes."""
        own = {"ffn_options": {"chunk_size": FFN_CHUNK}, **self.fields}
        return BlockConfig(heads=model.heads, recompute=True, **own)


TOPK, DENSE = "topk", "dense"
METHODS = {
    method.name: method
    for method in (
        Method(
            "dense-heads",
            "dense, the scores of all 12 heads at once",
            {"attention_options": {"workers": PAPER.heads}},
            quadratic=True,
        ),
        Method(DENSE, "dense, the scores of a head at once in each thread", {}, quadratic=True),
        Method(
            "chunked",
            "dense in chunks of 1,024 queries, the paper's setting",
            {"attention": "chunked", "chunk_size": 1024},
        ),
        Method(
            "chunked-budget",
            "dense in chunks within the scratch of top-k, 64 MiB",
            {
                "attention": "chunked",
                "chunk_size": None,
                "attention_options": {"memory_budget": DEFAULT_MEMORY_BUDGET},
            },
        ),
        Method(TOPK, f"top-k, k = {K}", {"attention": "topk", "k": K}),
        Method(
            "topk-ffn",
            f"top-k, k = {K}, and the {FFN_K} best feed-forward units",
            {"attention": "topk", "k": K, "ffn_k": FFN_K, "ffn_options": {}},
        ),
    )
}


class Run(NamedTuple):
    """What one run took."""

    method: str
    length: int
    memory: int
    """Bytes beyond the imports, at the peak of the whole process."""
    parameters: int
    """Bytes of the parameters; their gradients take as many."""
    seconds: float
    cpu_seconds: float
    """Of all cores together, which other programs on the machine do not prolong as much."""

    @property
    def beyond(self) -> int:
        """Bytes beyond parameters and their gradients."""
        return self.memory - 2 * self.parameters


def try_alone(method: str, length: int, limit: float) -> Run | str:
    """Run in a new process; a sentence if that fails or takes more than `limit` seconds."""
    try:
        return run_alone(measure, method, length, limit=limit)[0]
    except RunFailed as error:
        return str(error)


def sweep(
    lengths: Sequence[int], done: Sequence[Run], limits: Limits, tick: Tick
) -> Iterator[Run | str]:
    """The runs that are not done yet, shortest first; a sentence for each that is left out."""
    runs = {(run.method, run.length): run for run in done}
    for length in sorted(set(lengths)):
        for method in METHODS.values():
            if (method.name, length) in runs or (method.quadratic and length > LONGEST_DENSE):
                continue
            tick(f"{method.name}, {length:,}")
            shorter = runs.get((method.name, length // 2))
            growth = 4 if method.quadratic else 2
            if shorter is not None and growth * shorter.beyond > limits.memory:
                taken: Run | str = f"it may take {growth * shorter.beyond / MEBI:,.0f} MiB"
            else:
                taken = try_alone(method.name, length, limits.seconds)
            if isinstance(taken, Run):
                runs[method.name, length] = taken
                yield taken
            else:
                yield f"{method.name} left out at {length:,}: {taken}"


def measure(name: str, length: int, model: Model = PAPER) -> Run:
    """Run a method in this process."""
    method = METHODS[name]
    importlib.import_module("scipy.sparse")  # which topk_np loads when a problem is large enough
    step(method.config(SMALL), SMALL, 128)
    before, start, cpu = peak_memory(), perf_counter(), process_time()
    params, grads = step(method.config(model), model, length)
    seconds, cpu = perf_counter() - start, process_time() - cpu
    memory = peak_memory() - before
    del grads  # only now: they count
    parameters = sum(
        array.nbytes for block in params for part in block.values() for array in part.values()
    )
    return Run(name, length, memory, parameters, seconds, cpu)


def step(config: BlockConfig, model: Model, length: int) -> tuple[list[Any], list[Any]]:
    """Parameters, and their gradients for the loss ``sum(out^2) / 2``."""
    rng = np.random.default_rng(0)
    params = [config.init(rng, width=model.width, hidden=model.hidden) for _ in range(model.layers)]
    x, kept = rng.standard_normal((length, model.width), np.float32), []
    for block in params:
        x, residuals = encoder_block_fwd(x, block, config, is_causal=True)
        kept.append(residuals)
    del residuals
    dx, grads = x, []
    while kept:
        # Each block lets go of its input when it is done.
        dx, of_block = encoder_block_bwd(kept.pop(), dx)
        grads.append(of_block)
    return params, grads


def slopes(runs: list[Run]) -> tuple[float, float]:
    """
    How memory beyond the parameters grows between the two longest runs of a method.

    As a power of the length, and in bytes a token.
    """
    shorter, longer = sorted(runs, key=lambda run: run.length)[-2:]
    power = math.log(longer.beyond / shorter.beyond) / math.log(longer.length / shorter.length)
    return power, (longer.beyond - shorter.beyond) / (longer.length - shorter.length)
