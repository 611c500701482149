"""Checkpoints that version 0.1.0 wrote after two steps are read, and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.models.tiny import write_gguf
from topk_np.cli import main
from topk_np.training import flatten, load_params

OLD = Path(__file__).parents[1] / "data" / "runs"
OPTIONS = {
    "train": ["listops", "--attention", "topk", "--k", "3", "--test-k", "4", "--layers", "1",
              "--width", "4", "--heads", "2", "--hidden", "4", "--batch", "4",
              "--evaluate-every", "2"],
    "finetune": ["--model", "tiny.gguf", "--text", "text", "--length", "16", "--batch", "2",
                 "--learning-rate", "0.01", "--lora", "1", "--only", "layers.0.ffn.*",
                 "--ffn-k", "40"],
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_a_run_of_version_0_1_0_is_gone_on_with(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(Path("tiny.gguf"))
    shutil.copy(OLD / "text", "text")
    shutil.copytree(OLD / command, "old")
    old, about = load_params("old/checkpoint.safetensors")
    results = json.loads((OLD / command / "results.json").read_text())
    assert json.loads(about["settings"]) == results["settings"]
    assert about["step"] == "2"

    run = [command, *OPTIONS[command], "--out"]
    assert main([*run, "old", "--steps", "4", "--resume"]) == 0
    assert main([*run, "new", "--steps", "4"]) == 0
    found, wanted = (flatten(load_params(f"{f}/checkpoint.safetensors")[0]) for f in ("old", "new"))
    assert found.keys() == wanted.keys() == flatten(old).keys()
    for name, array in wanted.items():  # rounded as another machine may round
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    logs = [
        [json.loads(line) for line in Path(f, "log.jsonl").read_text().splitlines()]
        for f in ("old", "new")
    ]
    for before, now in zip(*logs, strict=True):
        assert before.keys() == now.keys()
        assert before["step"] == now["step"]
        assert before["loss"] == pytest.approx(now["loss"], rel=1e-3)
    assert json.loads(Path("old/results.json").read_text()).keys() == results.keys()
