"""``python -m topk_np finetune`` on the tiny model: what it prints, saves and refuses."""

from __future__ import annotations

import json
import os
import signal
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.tiny import write_gguf
from tests.test_cli import fails
from topk_np.cli import main
from topk_np.models import Adapter, load_model
from topk_np.models.decode import generate
from topk_np.models.llama import loss_fwd
from topk_np.runs import finetune, language, loop
from topk_np.runs.finetune import prepare
from topk_np.runs.language import Settings
from topk_np.runs.records import CHECKPOINT, LOG, read_log
from topk_np.training import flatten, load_params

SMALL = ["--length", "16", "--batch", "2", "--learning-rate", "0.01"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, and beside it a text for it."""
    folder = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    letters = rng.choice(list(string.ascii_lowercase + " "), (30, 60))
    (folder / "text").write_text("\n\n".join("the " + "".join(row) for row in letters))
    return write_gguf(folder / "tiny.gguf")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and checkpoints every other step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    return tmp_path


@pytest.fixture
def usual(tiny: Path) -> list[str]:
    """The arguments that all runs have."""
    return ["finetune", "--model", str(tiny), "--text", str(tiny.with_name("text")), *SMALL]


def repeatable(folder: Path) -> list[dict[str, Any]]:
    """The log without what depends on the machine."""
    return [
        {name: line[name] for name in line if name not in ("seconds", "memory")}
        for line in read_log(folder)
    ]


@pytest.mark.parametrize("options", [[], ["--lora", "2"], ["--only", "layers.*.ffn.*", "norm"]])
def test_a_run_leaves_what_was_trained_a_log_and_results(
    usual: list[str], here: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    chosen = ["--ffn-k", "40", "--steps", "12", "--evaluate-every", "6", *options]
    assert main([*usual, *chosen, "--out", "run"]) == 0
    shown = capsys.readouterr()
    assert {path.name for path in (here / "run").iterdir()} == {
        "adapter.safetensors", CHECKPOINT, LOG, "results.json",
    }  # fmt: skip
    found = json.loads((here / "run" / "results.json").read_text())
    tuned = found["held_out"]["top-k"]
    assert tuned["after"]["perplexity"] < 0.97 * tuned["before"]["perplexity"]
    row = f"as it was trained{tuned['before']['perplexity']:25.2f}"
    assert f"{row}{tuned['after']['perplexity']:10.2f}" in shown.out
    assert "dense" in shown.out
    assert "feed-forward k = 40" in shown.out
    lines = list(read_log(here / "run"))
    assert [line["step"] for line in lines if "split" not in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "split" in line] == [6, 12]
    assert lines[-1]["accuracy"] == pytest.approx(tuned["after"]["accuracy"])
    assert all(line["tokens"] == 30 for line in lines if "split" not in line)
    assert "loss" in shown.err
    assert "tokens/s" in shown.err
    assert "MiB" in shown.err


def test_what_was_trained_makes_the_model_that_was_tested_and_generates_with_it(
    usual: list[str], tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*usual, "--lora", "3", "--ffn-k", "9", "--steps", "8", "--out", "run"]) == 0
    found = json.loads((here / "run" / "results.json").read_text())
    adapter = Adapter.load(here / "run" / "adapter.safetensors")
    work = prepare(Settings.loads(json.dumps(found["settings"])))
    for path, factor in flatten(adapter.params).items():
        assert not np.array_equal(factor, flatten(work.adapter.params)[path]), path
    model, tests = adapter.apply(load_model(tiny)), work.texts.tests(16)
    for name, own in (("dense", model), ("top-k", replace(model, ffn_k=9))):
        assert (
            language.read(own, tests).perplexity == found["held_out"][name]["after"]["perplexity"]
        )
    capsys.readouterr()
    writes = ["generate", "--model", str(tiny), "--prompt", "the", "--max-tokens", "9"]
    texts = []
    for more in ([], ["--adapter", "run/adapter.safetensors"]):
        assert main([*writes, *more]) == 0
        texts.append(capsys.readouterr().out)
    ids = list(generate(model, model.tokenizer.encode("the"), count=9))
    assert texts[1] == model.tokenizer.decode(map(int, ids)) + "\n"
    assert texts[0] != texts[1]
    assert "--adapter nothing: No such file" in fails(capsys, *writes, "--adapter", "nothing")
    (here / "other").write_text("text")
    assert "other: cut off, damaged" in fails(capsys, *writes, "--adapter", "other")


@pytest.mark.parametrize("options", [["--only", "norm", "layers.0.*"], ["--lora", "2"]])
def test_a_run_in_two_parts_is_the_whole_run_bit_for_bit(
    usual: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return loss_fwd(*arguments, **options)

    monkeypatch.setattr(finetune, "loss_fwd", counted)
    chosen = [*usual, "--attention-k", "4", "--evaluate-every", "3", *options]
    assert main([*chosen, "--steps", "6", "--out", "whole"]) == 0
    assert main([*chosen, "--steps", "3", "--out", "parts"]) == 0
    assert main([*chosen, "--steps", "6", "--out", "parts", "--resume"]) == 0
    assert len(calls) == 6 + 6
    for file in (CHECKPOINT, "adapter.safetensors"):
        whole, parts = (flatten(load_params(here / f / file)[0]) for f in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for name, array in whole.items():
            assert array.tobytes() == parts[name].tobytes(), name
    assert repeatable(here / "whole") == repeatable(here / "parts")


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(
    usual: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss_fwd(*arguments, **options)

    monkeypatch.setattr(finetune, "loss_fwd", interrupted)
    chosen = [*usual, "--lora", "1", "--steps", "5"]
    assert main([*chosen, "--out", "run"]) == 130
    assert "go on with --resume --out run" in capsys.readouterr().err
    checkpoint, about = load_params(here / "run" / CHECKPOINT)
    assert about["step"] == "3"
    adapter = Adapter.load(here / "run" / "adapter.safetensors")
    for name, array in flatten(checkpoint["params"]).items():
        assert np.array_equal(array, flatten(adapter.params)[name]), name
    assert main([*chosen, "--out", "run", "--resume"]) == 0
    assert main([*chosen, "--out", "whole"]) == 0
    assert repeatable(here / "run") == repeatable(here / "whole")


def test_a_loss_that_is_nan_stops_with_a_message_and_keeps_the_checkpoint(
    usual: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def diverging(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        loss, residuals = loss_fwd(*arguments, **options)
        return (np.asarray(np.nan) if len(calls) == 4 else loss), residuals

    monkeypatch.setattr(finetune, "loss_fwd", diverging)
    assert main([*usual, "--lora", "1", "--steps", "5", "--out", "run"]) == 2
    assert "error: the loss is nan at step 4, with --learning-rate 0.01" in capsys.readouterr().err
    tree, about = load_params(here / "run" / CHECKPOINT)
    assert about["step"] == "2"
    assert all(np.isfinite(array).all() for array in flatten(tree).values())


@pytest.mark.parametrize(
    ("model", "name"), [("a/v1.1", "v1.1"), ("a/b.Q8_0.gguf", "b.Q8_0"), ("smollm2", "smollm2")]
)
def test_the_name_of_a_run_has_that_of_the_model(model: str, name: str) -> None:
    assert Settings(model=model).name == f"{name}-dense-seed0"


def test_a_run_is_named_after_what_is_done_and_never_written_over(
    usual: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*usual, "--lora", "1", "--attention-k", "4", "--steps", "1"]
    assert main(chosen) == 0
    assert main(chosen) == 0
    names = sorted(path.name for path in (here / "topk_np_finetune").iterdir())
    assert names == ["tiny-attention4-lora1-seed0", "tiny-attention4-lora1-seed0-2"]
    capsys.readouterr()
    folder = f"topk_np_finetune/{names[0]}"
    assert "holds a run: go on with --resume" in fails(capsys, *chosen, "--out", folder)
    others = ["--seed", "1", "--lora", "2", "--only", "layers.0.*"]
    message = fails(capsys, *chosen, *others, "--out", folder, "--resume")
    assert f"--resume: the run in {folder} has --lora 1, no --only, --seed 0" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt2"], "--model must be smollm2, the path of a GGUF file or of a folder"),
        (
            ["--only", "layers.9.*"],
            "--only must fit what can be trained, got 'layers.9.*'",
        ),
        (
            ["--lora", "2", "--only", "norm"],
            "--only must fit what can be trained, got 'norm'",
        ),
        (["--length", "4096"], "--length must be 2 to 2048 for this model, got 4096"),
        (["--length", "1"], "argument --length: must be at least 2, got 1"),
        (["--lora", "0"], "argument --lora: must be at least 1, got 0"),
        (["--text", "nothing"], "--text nothing: No such file"),
        (["--resume", "--out", "elsewhere"], "there is no checkpoint.safetensors in elsewhere"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    usual: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in fails(capsys, *usual, *arguments)


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing_to_go_on_from(
    usual: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune.FineTuning, "step", interrupted)
    assert main([*usual, "--out", "run"]) == 130
    assert "Interrupted; there is no checkpoint yet" in capsys.readouterr().err
    assert not (here / "run" / CHECKPOINT).exists()


def test_a_rate_and_a_folder_that_cannot_be_are_refused_before_anything_is_done(
    usual: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, message in (("-1", "finite and at least 0"), ("nan", "finite"), ("x", "a number")):
        with pytest.raises(SystemExit):
            main([*usual, "--learning-rate", rate, "--out", "run"])
        assert f"argument --learning-rate: must be {message}" in capsys.readouterr().err
    assert not (here / "run").exists()
    (here / "file").touch()
    assert main([*usual, "--out", "file"]) == 2
    assert "--out file: " in capsys.readouterr().err
