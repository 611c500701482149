"""Training with a bar that shows how it goes."""

from __future__ import annotations

import sys
from pathlib import Path

from topk_np._process import peak_memory
from topk_np.runs.loop import Measured, Work, train
from topk_np.runs.records import CHECKPOINT, State

MEBI = 2**20
NEWEST = 0.02  # the share of the newest step in the running means


def train_with_bar(
    work: Work, state: State, folder: Path, *, name: str, steps: int, evaluate_every: int
) -> State:
    """`train`, with a bar that shows loss, accuracy, tokens a second and memory."""
    from tqdm import tqdm

    with tqdm(total=steps, initial=state.step, desc=name, unit="step") as bar:
        means: dict[str, float] = {}
        tokens, seconds = 0, state.seconds

        def tick(state: State, measured: Measured) -> None:
            nonlocal tokens
            tokens += measured.tokens
            for what, number in (("loss", measured.loss), ("accuracy", measured.accuracy)):
                if number is not None:
                    old = means.setdefault(what, number)
                    means[what] = old + (number - old) * NEWEST
            speed = tokens / max(state.seconds - seconds, 1e-9)
            shown = [f"{what} {number:.3f}" for what, number in means.items()]
            shown += [f"{speed:,.0f} tokens/s", f"{peak_memory() / MEBI:,.0f} MiB"]
            bar.update()
            bar.set_postfix_str(", ".join(shown), refresh=False)

        try:
            return train(work, state, folder, steps=steps, evaluate_every=evaluate_every, tick=tick)
        except KeyboardInterrupt:
            advice = f"go on with --resume --out {folder}"
            if not (folder / CHECKPOINT).exists():
                advice = "there is no checkpoint yet"
            bar.write(f"Interrupted; {advice}", file=sys.stderr)
            raise
