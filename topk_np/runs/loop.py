"""The training loop: steps, evaluations, checkpoints and a log, whatever is trained."""

from __future__ import annotations

import math
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple, Protocol

from topk_np._process import UserError, peak_memory
from topk_np.runs.interrupts import Interrupts
from topk_np.runs.records import CHECKPOINT, Log, State, save_state
from topk_np.runs.settings import RunSettings
from topk_np.workers import Crew

CHECKPOINT_EVERY = 100  # steps


class Measured(NamedTuple):
    """How a model did on some examples."""

    loss: float
    tokens: int
    """Without padding."""
    accuracy: float | None = None
    """None where nothing is right or wrong."""
    norm: float = 0.0
    """Of the gradients, before they are clipped."""


class Work(Protocol):
    """What is trained on what."""

    @property
    def settings(self) -> RunSettings:
        """All that a step depends on, beside the state."""
        ...

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after the next step, and how the model did on its batch before it."""
        ...

    def validate(self, state: State) -> Measured:
        """How the model does on examples that it is not trained on."""
        ...


class Tick(Protocol):
    """Told of each step."""

    def __call__(self, state: State, measured: Measured) -> None:
        """After a step, how the batch was done before it."""


def train(
    work: Work,
    state: State,
    folder: Path,
    *,
    steps: int,
    evaluate_every: int,
    tick: Tick,
) -> State:
    """
    Train up to so many steps in all, from wherever `state` is.

    The folder gets a line of the log for each step, and a checkpoint every `CHECKPOINT_EVERY` of
    them and at the end. Ctrl-C ends it after the step that runs.

    Raises
    ------
    UserError
        If the loss or the gradient is not finite any more.
    KeyboardInterrupt
        After Ctrl-C, when the checkpoint is saved.
    """
    log = Log(folder, upto=state.step)
    try:
        # BLAS with one thread: sums are the same on any number of cores.
        with Crew(1), Interrupts() as interrupts:
            while state.step < steps and not interrupts.asked:
                start, cpu = perf_counter(), process_time()
                new, measured = work.step(state)
                if not (math.isfinite(measured.loss) and math.isfinite(measured.norm)):
                    raise UserError(_diverged(measured, state, work.settings, folder))
                state = new._replace(
                    seconds=state.seconds + perf_counter() - start,
                    cpu=state.cpu + process_time() - cpu,
                )
                log.write(
                    step=state.step,
                    **_quality(measured),
                    norm=measured.norm,
                    tokens=measured.tokens,
                    seconds=round(state.seconds, 4),
                    memory=peak_memory(),
                )
                tick(state, measured)
                if state.step % evaluate_every == 0:
                    found = work.validate(state)
                    log.write(step=state.step, split="validation", **_quality(found))
                if state.step % CHECKPOINT_EVERY == 0:
                    save_state(folder, work.settings, state)
            save_state(folder, work.settings, state)
            if interrupts.asked:
                raise KeyboardInterrupt
    finally:
        log.close()
    return state


def _quality(measured: Measured) -> dict[str, float]:
    found = {"loss": measured.loss, "accuracy": measured.accuracy}
    return {name: number for name, number in found.items() if number is not None}


def _diverged(measured: Measured, state: State, settings: RunSettings, folder: Path) -> str:
    what = "loss" if not math.isfinite(measured.loss) else "gradient"
    number = measured.loss if what == "loss" else measured.norm
    return (
        f"the {what} is {number} at step {state.step + 1}, with --learning-rate "
        f"{settings.learning_rate:g}: try a lower one"
        + (f"; {folder} keeps the last checkpoint before" if (folder / CHECKPOINT).exists() else "")
    )
