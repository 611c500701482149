"""A run of training, of any work: steps, evaluations, checkpoints and a log, and results."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol

from topk_np._process import MEBI, UserError, make_folder, one_thread, peak_memory, write_whole
from topk_np.runs.records import (
    CHECKPOINT,
    RESULTS,
    Chosen,
    Log,
    RunSettings,
    State,
    choose_folder,
    load_state,
    read_log,
    resumed,
    save_state,
)
from topk_np.training.adamw import adamw, clip_by_global_norm
from topk_np.training.schedules import constant
from topk_np.training.trees import Tree, tree_map

CHECKPOINT_EVERY = 100  # steps
NEWEST = 0.02  # the share of the newest step in the means that the bar shows

Facts = dict[str, Any]
"""JSON values about a run."""


class Measured(NamedTuple):
    """Figures of a model on some examples."""

    loss: float
    tokens: int
    """The number of tokens, without padding."""
    accuracy: float = math.nan
    """NaN where nothing is right or wrong."""
    norm: float = 0.0
    """The norm of the gradients before they are clipped."""


class Work(Protocol):
    """A model, its data and its settings, ready to be trained."""

    @property
    def settings(self) -> RunSettings:
        """All that a step depends on, except the state."""
        ...

    def first(self) -> State:
        """The state before the first step."""
        ...

    def heading(self, state: State) -> str:
        """The line that says what is trained on what."""
        ...

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after the next step, and the figures of its batch before it."""
        ...

    def validate(self, state: State) -> Measured:
        """The figures of examples that are not trained on."""
        ...

    def leave(self, state: State, folder: Path) -> None:
        """Save what is used elsewhere, besides the checkpoint; after an interruption too."""
        ...

    def results(self, state: State, facts: Facts) -> Facts:
        """Test the model, and return the results with the facts about the run."""
        ...

    def report(self, found: Facts, folder: Path) -> None:
        """Print the results, and draw them."""
        ...


def run(
    settings: Chosen,
    prepare: Callable[[Chosen], Work],
    *,
    home: str,
    steps: int,
    out: Path | None,
    resume: bool,
    evaluate_every: int,
) -> Facts:
    """
    Train, test, and leave a checkpoint, a log and results in a folder.

    Parameters
    ----------
    settings : RunSettings
        The settings of the run.
    prepare : callable
        Makes the work of the settings.
    home : str
        The folder in which a run gets a folder of its own if `out` is None.
    steps : int
        Steps in all, with those before a checkpoint.
    out : Path, optional
        The folder of the run.
    resume : bool
        Whether to go on from the checkpoint there.
    evaluate_every : int
        Steps between two evaluations of examples that are not trained on.

    Returns
    -------
    dict
        The content of the file of results.

    Raises
    ------
    UserError
        If the run cannot begin, or diverges.
    KeyboardInterrupt
        After Ctrl-C; the checkpoint is there then.
    """
    import safetensors  # noqa: F401  not only when the first checkpoint is to be saved
    import tqdm  # noqa: F401

    folder = choose_folder(Path(home) / settings.name, out=out, resume=resume)
    work = prepare(settings)
    state = work.first()
    if resume:
        state = resumed(folder, settings, state)
    make_folder("--out", folder)
    print(work.heading(state))
    print(f"Folder: {folder}")
    held = peak_memory()
    try:
        state = train(work, state, folder, steps=steps, evaluate_every=evaluate_every)
    except KeyboardInterrupt:
        if (folder / CHECKPOINT).exists():
            work.leave(load_state(folder, like=state), folder)
        raise
    memory = peak_memory()
    work.leave(state, folder)
    tokens = sum(line.get("tokens", 0) for line in read_log(folder))
    facts = {
        "settings": asdict(settings),
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "cpu_seconds": round(state.cpu, 2),
        "tokens_per_second": round(tokens / state.seconds, 1) if state.seconds else 0.0,
        "peak_memory": memory,
        "memory_before_training": held,
    }
    found = work.results(state, facts)
    write_whole(folder / RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    work.report(found, folder)
    return found


def train(work: Work, state: State, folder: Path, *, steps: int, evaluate_every: int) -> State:
    """
    Train up to a number of steps in all, from wherever `state` is, with a bar that shows progress.

    The folder gets a line of the log for each step, and a checkpoint every `CHECKPOINT_EVERY` of
    them and at the end. Ctrl-C ends it after the step that runs.

    Raises
    ------
    UserError
        If the loss or the gradient becomes infinite or NaN.
    KeyboardInterrupt
        After Ctrl-C, once the checkpoint is saved.
    """
    from tqdm import tqdm

    settings, progress = work.settings, _Progress(state.seconds)
    with (
        tqdm(total=steps, initial=state.step, desc=settings.name, unit="step") as bar,
        closing(Log(folder, upto=state.step)) as log,
        one_thread(),
        Interrupts() as interrupts,
    ):
        try:
            while state.step < steps and not interrupts.asked:
                start, cpu = perf_counter(), process_time()
                new, measured = work.step(state)
                if not (math.isfinite(measured.loss) and math.isfinite(measured.norm)):
                    raise UserError(_diverged(measured, state, settings, folder))
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
                bar.update()
                bar.set_postfix_str(progress.after(state, measured), refresh=False)
                if state.step % evaluate_every == 0:
                    found = work.validate(state)
                    log.write(step=state.step, split="validation", **_quality(found))
                if state.step % CHECKPOINT_EVERY == 0:
                    save_state(folder, settings, state)
            save_state(folder, settings, state)
            if interrupts.asked:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            advice = f"go on with --resume --out {folder}"
            if not (folder / CHECKPOINT).exists():
                advice = "there is no checkpoint yet"
            bar.write(f"Interrupted; {advice}", file=sys.stderr)
            raise
    return state


def descend(state: State, grads: Tree, settings: RunSettings) -> tuple[State, float]:
    """Take a step of AdamW with clipped gradients; return their norm before that as well."""
    grads, norm = clip_by_global_norm(grads, settings.CLIP)
    params, optimiser = adamw(
        state.params,
        grads,
        state.optimiser,
        learning_rate=constant(settings.learning_rate, warmup=settings.WARMUP)(state.step),
        weight_decay=settings.WEIGHT_DECAY,
        decays=tree_map(lambda array: array.ndim > 1, state.params),
    )
    return state._replace(params=params, optimiser=optimiser), float(norm)


def _quality(measured: Measured) -> dict[str, float]:
    known = {} if math.isnan(measured.accuracy) else {"accuracy": measured.accuracy}
    return {"loss": measured.loss, **known}


def _diverged(measured: Measured, state: State, settings: RunSettings, folder: Path) -> str:
    what = "loss" if not math.isfinite(measured.loss) else "gradient"
    number = measured.loss if what == "loss" else measured.norm
    return (
        f"the {what} is {number} at step {state.step + 1}, with --learning-rate "
        f"{settings.learning_rate:g}: try a lower one"
        + (f"; {folder} keeps the last checkpoint before" if (folder / CHECKPOINT).exists() else "")
    )


class _Progress:
    """Running means of loss and accuracy, and tokens a second, in a line."""

    def __init__(self, seconds: float) -> None:
        self._means: dict[str, float] = {}
        self._tokens, self._start = 0, seconds

    def after(self, state: State, measured: Measured) -> str:
        """The line after a step."""
        self._tokens += measured.tokens
        for name, number in _quality(measured).items():
            old = self._means.setdefault(name, number)
            self._means[name] = old + (number - old) * NEWEST
        speed = self._tokens / max(state.seconds - self._start, 1e-9)
        shown = [f"{name} {number:.3f}" for name, number in self._means.items()]
        return ", ".join([*shown, f"{speed:,.0f} tokens/s", f"{peak_memory() / MEBI:,.0f} MiB"])


class Interrupts:
    """
    A context in which a first Ctrl-C only sets `asked`, and a second one interrupts at once.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        """Take over the signal."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hand the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
