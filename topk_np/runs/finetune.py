"""The program ``python -m topk_np finetune``: train a pretrained language model further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._namespace import nbytes
from topk_np._process import MEBI, UserError, describe_ks
from topk_np.models.adapter import Adapter, AdapterError
from topk_np.models.load import family_of, load_named, loss_bwd, loss_fwd
from topk_np.models.model import Model
from topk_np.runs import loop
from topk_np.runs.language import Reading, Settings, Texts, make_adapter, read, read_texts
from topk_np.runs.loop import Facts, Measured, descend
from topk_np.runs.records import State
from topk_np.training.trees import flatten

FOLDER, ADAPTER = "topk_np_finetune", "adapter.safetensors"
RATES = {True: 1e-3, False: 3e-5}
"""Learning rates of low-rank updates, and of the weights themselves."""
TIMES = ("seconds", "cpu_seconds", "tokens_per_second", "peak_memory")
WIDTH = 34  # of the words in the report


def run(
    *,
    steps: int,
    out: Path | None,
    resume: bool,
    evaluate_every: int,
    text: Sequence[Path] = (),
    only: Sequence[str] = (),
    learning_rate: float | None = None,
    **settings: Any,
) -> Facts:
    """
    Fine-tune, and leave a checkpoint, a log, what was trained and results in a folder.

    Parameters
    ----------
    steps, out, resume, evaluate_every
        As for `topk_np.runs.loop.run`.
    text : sequence of Path
        Files to train on and to test with; by default Python's own documentation.
    only : sequence of str
        Patterns of the paths of what is trained.
    learning_rate : float, optional
        One of `RATES` by default.
    **settings
        The others of `Settings`.

    Returns
    -------
    dict
        The content of the file of results.

    Raises
    ------
    UserError
        With a message of one line.
    KeyboardInterrupt
        After Ctrl-C; the checkpoint and what was trained so far are there then.
    """
    low_rank = settings.get("lora") is not None
    chosen = Settings(
        text=tuple(map(str, text)),
        only=tuple(only),
        learning_rate=RATES[low_rank] if learning_rate is None else learning_rate,
        **settings,
    )
    return loop.run(
        chosen,
        prepare,
        home=FOLDER,
        steps=steps,
        out=out,
        resume=resume,
        evaluate_every=evaluate_every,
    )


def prepare(settings: Settings, /) -> FineTuning:
    """Load the model and the texts, checked against each other."""
    ks = {"attention_k": settings.attention_k, "ffn_k": settings.ffn_k}
    model = load_named(settings.model, **ks)
    family, length = family_of(model), settings.length
    context = family.context(model)
    if length < 2 or (context is not None and length > context):
        raise UserError(f"--length must be 2 to {context} for this model, got {length}")
    try:
        texts = read_texts(model.tokenizer, [Path(path) for path in settings.text], length)
        family.examples(model, texts.tests(length), np.random.default_rng(0))
    except ValueError as error:  # a folder without a tokenizer, or a model that is not for text
        raise UserError(str(error)) from error
    try:
        adapter = make_adapter(model, settings)
    except AdapterError as error:  # about `only`
        raise UserError(f"--{error}") from error
    return FineTuning(model, adapter, texts, settings)


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A model, the part of it that is trained, and texts, as `topk_np.runs.loop.Work`."""

    model: Model[Any]
    adapter: Adapter
    texts: Texts
    settings: Settings

    def first(self) -> State:
        """The state before the first step."""
        return State.first(self.adapter.params, averaged=False)

    def heading(self, state: State) -> str:
        """Model, method, and the sizes of what is trained and read."""
        settings = self.settings
        trained = sum(array.size for array in flatten(state.params).values())
        what = "weights" if settings.lora is None else f"numbers in updates of rank {settings.lora}"
        source = ", ".join(settings.text) or "Python's documentation"
        return (
            f"{settings.model}: {describe_ks(asdict(settings))}; {trained:,} {what} are trained\n"
            f"{source}: {len(self.texts.training):,} tokens to train on, "
            f"{self.texts.tests(settings.length).size:,} held out"
        )

    def step(self, state: State) -> tuple[State, Measured]:
        """The state after a step on the next batch."""
        settings = self.settings
        tokens = self.texts.batch(
            settings.batch, settings.length, seed=settings.seed, step=state.step
        )
        rng = np.random.default_rng((settings.seed, state.step, 1))
        # 1 weights = those of the model, with the trained ones in place or merged in
        # 2 loss = mean over the tokens to predict
        # 3 parameters and moments, moved along the clipped gradients of what is trained
        adapter = self.trained(state)
        model = adapter.apply(self.model)
        data, labels = family_of(model).examples(model, tokens, rng)
        loss, residuals = loss_fwd(model, *data, recompute=settings.recompute)
        grads = loss_bwd(model, residuals, keep=adapter.keep())
        del residuals
        moved, norm = descend(state, grads, settings)
        return moved, Measured(float(loss), labels, norm=norm)

    def validate(self, state: State) -> Measured:
        """The figures of the model on the held-out text."""
        found = read(self.tuned(state), self.texts.tests(self.settings.length))
        return Measured(found.loss, found.tokens, found.accuracy)

    def trained(self, state: State) -> Adapter:
        """The part that is trained, after the steps taken."""
        return replace(self.adapter, params=state.params)

    def tuned(self, state: State) -> Model[Any]:
        """The model after the steps taken."""
        return self.trained(state).apply(self.model)

    def leave(self, state: State, folder: Path) -> None:
        """Save the part that was trained."""
        self.trained(state).save(folder / ADAPTER, settings=self.settings.dumps())

    def results(self, state: State, facts: Facts) -> Facts:
        """Read the held-out text, with the model as it was and as it is."""
        tests, trained = self.texts.tests(self.settings.length), flatten(state.params).values()
        before, after = (_read(model, tests) for model in (self.model, self.tuned(state)))
        return {
            **{name: facts[name] for name in ("settings", "steps")},
            "trained": sum(array.size for array in trained),
            "trained_bytes": sum(map(nbytes, trained)),
            **{name: facts[name] for name in TIMES},
            "held_out_tokens": tests.size,
            "held_out": {
                name: {
                    when: {"perplexity": found[name].perplexity, "accuracy": found[name].accuracy}
                    for when, found in (("before", before), ("after", after))
                }
                for name in before
            },
        }

    def report(self, found: Facts, folder: Path) -> None:
        """Print the results."""
        print(describe(found))
        print(f"What was trained, for --adapter and Adapter.load: {folder / ADAPTER}")


def _read(model: Model[Any], tests: Any) -> dict[str, Reading]:
    """Read the held-out text with the model's k, and dense."""
    from tqdm import tqdm

    models = {"dense": replace(model, attention_k=None, ffn_k=None)}
    if not (model.attention_k is None and model.ffn_k is None):
        models = {"top-k": model, **models}
    with tqdm(
        total=len(models) * len(tests), desc="held-out text", unit="text", leave=False
    ) as bar:
        return {name: read(own, tests, bar.update) for name, own in models.items()}


def describe(found: Mapping[str, Any]) -> str:
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
