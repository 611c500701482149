"""``finetune``, and ``generate`` with what it trained, on a tiny model of each family."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import pre_tokenizers, processors

from tests.models.golden import DATA
from tests.models.tiny import write_gguf
from tests.qa.models import t5_folder
from tests.test_cli import fails
from topk_np.cli import main
from topk_np.models import load_model
from topk_np.models.load import family_of, loss_fwd
from topk_np.training import flatten

WRITES = ("llama", "t5")
TEXT = " ".join("the path of " + letter for letter in string.ascii_lowercase)


def bert_tokenizer() -> str:
    """A tokenizer with a token for each letter, and the markers of BERT."""
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *string.ascii_lowercase, " "]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(tokenizer.to_str())


def write(name: str, folder: Path) -> Path:
    """A model of a family, with a tokenizer, and a text next to it."""
    (folder / "text").write_text("\n\n".join(TEXT[i:] for i in range(30)))
    if name == "llama":
        return write_gguf(folder / "tiny.gguf")
    own = folder / name
    own.mkdir()
    if name == "t5":
        return t5_folder(own)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(DATA / "bert" / file, own / file)
    (own / "tokenizer.json").write_text(bert_tokenizer(), encoding="utf-8")
    return own


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("options", [[], ["--lora", "2"]])
def test_every_family_is_trained_on_text(
    name: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write(name, tmp_path)
    how = ["--length", "16", "--batch", "2", "--steps", "12", "--learning-rate", "0.01", *options]
    out = tmp_path / "run"
    chosen = ["finetune", "--model", str(model), "--text", str(tmp_path / "text"), "--ffn-k", "40"]
    assert main([*chosen, *how, "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())["held_out"]["top-k"]
    assert found["after"]["perplexity"] < 0.97 * found["before"]["perplexity"]
    capsys.readouterr()
    writes = ["generate", "--model", str(model), "--prompt", "the", "--max-tokens", "9"]
    if name not in WRITES:
        assert "must be a model that writes" in fails(capsys, *writes)
        return
    texts = []
    for more in ([], ["--adapter", str(out / "adapter.safetensors")]):
        assert main([*writes, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_guesses_of_a_family_have_the_loss_that_it_is_trained_by(
    name: str, tmp_path: Path
) -> None:
    model = load_model(write(name, tmp_path), dtype="float64")
    family, rng = family_of(model), np.random.default_rng(0)
    tokens = rng.integers(5, 30, (3, 16))
    data, labels = family.examples(model, tokens, rng)
    seen, right = family.guess(model, *data)
    assert seen.loss.size == seen.best.size == right.size == labels
    loss, residuals = loss_fwd(model, *data)
    np.testing.assert_allclose(np.mean(seen.loss), loss, rtol=1e-12)
    assert flatten(family.loss_bwd(residuals)).keys() == flatten(model.params).keys()


def test_a_bert_model_without_its_head_or_its_mask_token_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write("bert", tmp_path)
    chosen = ["finetune", "--model", str(model), "--text", str(tmp_path / "text"), "--length", "9"]
    file = model / "model.safetensors"
    whole = load_file(file)
    save_file({name: t for name, t in whole.items() if not name.startswith("cls.")}, file)
    assert "must have a masked-LM head" in fails(capsys, *chosen)
    save_file(whole, file)
    tokenizer = bert_tokenizer().replace("[MASK]", "[mask]")
    (model / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    assert "a tokenizer with a token [MASK]" in fails(capsys, *chosen)
