"""What a run of training prints when it is done."""

from __future__ import annotations

from collections.abc import Mapping

from topk_np.runs.records import State
from topk_np.runs.settings import Settings

MEBI = 2**20
WIDTH = 34


def heading(settings: Settings, task: str, params: int) -> str:
    """What is trained on what."""
    return (
        f"{task}: {method(settings)}; {settings.layers} layers of width {settings.width}, "
        f"{settings.heads} heads, {settings.hidden} feed-forward units; {params:,} parameters"
    )


def method(settings: Settings) -> str:
    """How it attends, and which feed-forward units it keeps."""
    attention = {
        "dense": "dense attention",
        "chunked": "dense attention in chunks of queries",
        "topk": f"top-k attention, k = {settings.k}",
        "performer": f"Performer, {settings.features} features",
        "rfa": f"random feature attention, {settings.features} features",
    }[settings.attention]
    return attention + (f", feed-forward k = {settings.ffn_k}" if settings.ffn_k else "")


def results(
    settings: Settings,
    state: State,
    *,
    accuracy: float,
    swaps: Mapping[str, float],
    baselines: Mapping[str, float],
    speed: float,
    memory: int,
    examples: int,
) -> str:
    """Accuracy on the test split beside that of the baselines, and with another k."""
    error = (accuracy * (1 - accuracy) / examples) ** 0.5
    lines = [
        f"{state.step:,} steps in {state.seconds:.1f} s, {speed:,.0f} tokens/s, "
        f"{memory / MEBI:,.0f} MiB at the peak",
        "",
        f"{'accuracy on the test split':{WIDTH}}{examples:,} examples",
        "-" * (WIDTH + 20),
        *(_line(f"  {name}, no model", height) for name, height in baselines.items()),
        _line("  this model", accuracy) + f"  (standard error {error:.3f})",
    ]
    if swaps:
        lines.append("the same parameters, other attention")
        lines += [
            _line(f"  {'dense' if k == 'dense' else f'top-k, k = {k}'}", height)
            for k, height in swaps.items()
        ]
    return "\n".join(lines)


def _line(name: str, accuracy: float) -> str:
    return f"{name:{WIDTH}}{accuracy:.3f}"
