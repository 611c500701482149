"""The tiny T5 with tokenizers of its size, and files of questions."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import tokenizers
from tokenizers import decoders, pre_tokenizers, processors

from tests.models.golden import DATA

SPECIAL = ("<pad>", "</s>", "<unk>")
CHARACTERS = [*string.ascii_lowercase, *string.digits, *r" ?.,()\!'", *"äöüéèàßñçøåæœðþłšžčř"]


def tokenizer_json() -> str:
    """A tokenizer that knows each character as a token, and ends texts as T5's does."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return str(tokenizer.to_str())


def t5_folder(folder: Path, name: str = "t5_relu", *, tokenizer: bool = True) -> Path:
    """A folder with the tiny T5 and the tokenizer."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(DATA / name / file, folder / file)
    if tokenizer:
        (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


def write_questions(path: Path, *rows: tuple[str, ...]) -> Path:
    """A file of questions, each with its answers."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_lists(path: Path, *lists: list[str]) -> Path:
    """A file with a list of answers a line."""
    path.write_text("".join(json.dumps(answers) + "\n" for answers in lists), encoding="utf-8")
    return path
