"""The training loop: steps, evaluations, checkpoints and a log."""

from __future__ import annotations

import math
from pathlib import Path
from time import perf_counter, process_time
from typing import Protocol

from topk_np.bench.alone import peak_memory
from topk_np.tasks import Task
from topk_np.training.batches import batch_at
from topk_np.training.classifier import Classifier
from topk_np.training.interrupts import Interrupts
from topk_np.training.records import Log, State, save_state
from topk_np.training.settings import Settings, TrainError
from topk_np.training.steps import Measured, evaluate, take_step
from topk_np.workers import Crew

CHECKPOINT_EVERY = 100  # steps


class Tick(Protocol):
    """Told of each step."""

    def __call__(self, state: State, measured: Measured) -> None:
        """After a step, how the batch was done before it."""


def train(
    model: Classifier,
    task: Task,
    settings: Settings,
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
    TrainError
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
                batch = batch_at(task.train, settings.batch, seed=settings.seed, step=state.step)
                new, measured = take_step(model, state, batch, settings)
                if not (math.isfinite(measured.loss) and math.isfinite(measured.norm)):
                    raise TrainError(_diverged(measured, state, settings, folder))
                state = new._replace(
                    seconds=state.seconds + perf_counter() - start,
                    cpu=state.cpu + process_time() - cpu,
                )
                log.write(
                    step=state.step,
                    loss=measured.loss,
                    accuracy=measured.accuracy,
                    norm=measured.norm,
                    tokens=measured.tokens,
                    seconds=round(state.seconds, 4),
                    memory=peak_memory(),
                )
                tick(state, measured)
                if state.step % evaluate_every == 0:
                    found = evaluate(model, state.averaged, task.validation)
                    log.write(
                        step=state.step,
                        split="validation",
                        loss=found.loss,
                        accuracy=found.accuracy,
                    )
                if state.step % CHECKPOINT_EVERY == 0:
                    save_state(folder, settings, state)
            save_state(folder, settings, state)
            if interrupts.asked:
                raise KeyboardInterrupt
    finally:
        log.close()
    return state


def _diverged(measured: Measured, state: State, settings: Settings, folder: Path) -> str:
    what = "loss" if not math.isfinite(measured.loss) else "gradient"
    number = measured.loss if what == "loss" else measured.norm
    return (
        f"the {what} is {number} at step {state.step + 1}, with --learning-rate "
        f"{settings.learning_rate:g}: try a lower one; {folder} keeps the last checkpoint before"
    )
