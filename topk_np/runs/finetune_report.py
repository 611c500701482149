"""What a run of fine-tuning prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from topk_np.runs.finetune_settings import Settings
from topk_np.studies.settings import describe

if TYPE_CHECKING:
    from topk_np.runs.language import FineTuning

MEBI = 2**20
WIDTH = 34


def heading(settings: Settings, work: FineTuning, trained: int) -> str:
    """What is trained on what."""
    what = "weights" if settings.lora is None else f"numbers in updates of rank {settings.lora}"
    source = ", ".join(settings.text) or "Python's documentation"
    return (
        f"{settings.model}: {describe(asdict(settings))}; {trained:,} {what} are trained\n"
        f"{source}: {len(work.texts.training):,} tokens to train on, "
        f"{work.texts.tests(settings.length).size:,} held out"
    )


def results(found: dict[str, Any]) -> str:
    """Perplexity on the held-out text before and after."""
    lines = [
        f"{found['steps']:,} steps in {found['seconds']:.1f} s, "
        f"{found['tokens_per_second']:,.0f} tokens/s, "
        f"{found['peak_memory'] / MEBI:,.0f} MiB at the peak",
        "",
        f"{'perplexity on the held-out text':{WIDTH}}{'before':>10}{'after':>10}",
        "-" * (WIDTH + 20),
    ]
    for name, times in found["held_out"].items():
        words = f"  {name}" if name == "dense" else "  as it was trained"
        before, after = (times[when]["perplexity"] for when in ("before", "after"))
        lines.append(f"{words:{WIDTH}}{before:10.2f}{after:10.2f}")
    return "\n".join(lines)
