"""What ``python -m topk_np finetune`` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from topk_np._namespace import nbytes
from topk_np._process import UserError, make_folder, peak_memory, write_whole
from topk_np.models.adapter import AdapterError
from topk_np.models.llama_blocks import Llama, LlamaConfig
from topk_np.models.named import load_named
from topk_np.runs import finetune_report as report
from topk_np.runs.finetune_settings import Settings
from topk_np.runs.folders import choose_folder, resumed
from topk_np.runs.language import FineTuning, Reading, make_adapter, read
from topk_np.runs.progress import train_with_bar
from topk_np.runs.records import CHECKPOINT, State, load_state, read_log
from topk_np.runs.texts import read_texts
from topk_np.training.trees import flatten

FOLDER, ADAPTER, RESULTS = "topk_np_finetune", "adapter.safetensors", "results.json"
RATES = {True: 1e-3, False: 3e-5}
"""Learning rates of low-rank updates, and of the weights themselves."""


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
) -> dict[str, Any]:
    """
    Fine-tune, and leave a checkpoint, a log, what was trained and results in a folder.

    Parameters
    ----------
    steps : int
        Steps in all, with those before a checkpoint.
    out : Path, optional
        The folder; by default one named after the run, in `FOLDER`.
    resume : bool
        Whether to go on from the checkpoint there.
    evaluate_every : int
        Steps between two looks at the held-out text.
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
        What the file of results has.

    Raises
    ------
    UserError, ParamsError, AdapterError, ModelError, FetchError
        With a message of one line.
    KeyboardInterrupt
        After Ctrl-C; the checkpoint and what was trained so far are there then.
    """
    import safetensors  # noqa: F401  not only when the first checkpoint is to be saved
    import tqdm  # noqa: F401

    low_rank = settings.get("lora") is not None
    chosen = Settings(
        text=tuple(map(str, text)),
        only=tuple(only),
        learning_rate=RATES[low_rank] if learning_rate is None else learning_rate,
        **settings,
    )
    folder = choose_folder(Path(FOLDER) / chosen.name, out=out, resume=resume)
    work = prepare(chosen)
    state = State.first(work.adapter.params, averaged=False)
    if resume:
        state = resumed(folder, chosen, state)
    make_folder("--out", folder)

    trained = sum(array.size for array in flatten(state.params).values())
    print(report.heading(chosen, work, trained))
    print(f"Folder: {folder}")
    tests = work.texts.tests(chosen.length)
    before = _read(work.model, tests, "before")
    try:
        state = train_with_bar(
            work, state, folder, name=chosen.name, steps=steps, evaluate_every=evaluate_every
        )
    except KeyboardInterrupt:
        if (folder / CHECKPOINT).exists():
            _save(work, load_state(folder, like=state), folder)
        raise
    memory = peak_memory()
    _save(work, state, folder)
    after = _read(work.tuned(state), tests, "after")
    tokens = sum(line.get("tokens", 0) for line in read_log(folder))
    found = {
        "settings": asdict(chosen),
        "steps": state.step,
        "trained": trained,
        "trained_bytes": sum(map(nbytes, flatten(state.params).values())),
        "seconds": round(state.seconds, 2),
        "cpu_seconds": round(state.cpu, 2),
        "tokens_per_second": round(tokens / state.seconds, 1) if state.seconds else 0.0,
        "peak_memory": memory,
        "held_out_tokens": tests.size,
        "held_out": {
            name: {
                when: {"perplexity": found[name].perplexity, "accuracy": found[name].accuracy}
                for when, found in (("before", before), ("after", after))
            }
            for name in before
        },
    }
    write_whole(folder / RESULTS, (json.dumps(found, indent=1) + "\n").encode())
    print(report.results(found))
    print(f"What was trained, for --adapter and Adapter.load: {folder / ADAPTER}")
    return found


def prepare(settings: Settings, /) -> FineTuning:
    """Load the model and the texts, checked against each other."""
    ks = {"attention_k": settings.attention_k, "ffn_k": settings.ffn_k}
    model: Llama = load_named(settings.model, LlamaConfig, **ks)
    if not 2 <= settings.length <= model.config.context:
        raise UserError(
            f"--length must be 2 to {model.config.context} for this model, got {settings.length}"
        )
    try:
        texts = read_texts(model.tokenizer, [Path(path) for path in settings.text], settings.length)
    except ValueError as error:  # a folder without a tokenizer
        raise UserError(str(error)) from error
    try:
        adapter = make_adapter(model, settings)
    except AdapterError as error:  # about `only`
        raise UserError(f"--{error}") from error
    return FineTuning(model, adapter, texts, settings)


def _save(work: FineTuning, state: State, folder: Path) -> None:
    work.trained(state).save(folder / ADAPTER, settings=work.settings.dumps())


def _read(model: Llama, tests: np.ndarray, when: str) -> dict[str, Reading]:
    """How well the held-out text is read with the model's k, and dense."""
    from tqdm import tqdm

    ways = {"dense": replace(model, attention_k=None, ffn_k=None)}
    if not (model.attention_k is None and model.ffn_k is None):
        ways = {"top-k": model, **ways}
    with tqdm(
        total=len(ways) * len(tests), desc=f"held-out text, {when}", unit="text", leave=False
    ) as bar:
        return {name: read(way, tests, bar.update) for name, way in ways.items()}
