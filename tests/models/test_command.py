"""The command `generate`, run on the tiny model through the code that runs the real one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.tiny import END, TOKENS, fields, write_gguf
from tests.test_cli import fails
from topk_np.cli import main
from topk_np.fetch import FetchError
from topk_np.models import command, load, load_model
from topk_np.models.decode import Sampling, generate

PROMPT = "the path"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """What the command prints on stdout and stderr."""
    assert main(["generate", *map(str, arguments)]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def expected(path: Path, prompt: str = PROMPT, **options: Any) -> str:
    """The text that the model writes, made without the command."""
    ks = {name: options.pop(name, None) for name in ("attention_k", "ffn_k")}
    model = load_model(path, **ks)
    ids = list(generate(model, model.tokenizer.encode(prompt), **options))
    return model.tokenizer.decode(map(int, ids)) + "\n"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {"count": 128}),
        (["--max-tokens", 5], {"count": 5}),
        (["--attention-k", 2, "--max-tokens", 9], {"attention_k": 2, "count": 9}),
        (["--ffn-k", 3, "--max-tokens", 9], {"ffn_k": 3, "count": 9}),
    ],
    ids=str,
)
def test_a_text_is_gone_on_with_greedily(
    tiny_gguf: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    options: dict[str, Any],
) -> None:
    out, err = run(capsys, "--model", tiny_gguf, "--prompt", PROMPT, *arguments)
    assert out == expected(tiny_gguf, **options)
    written = options["count"]
    assert re.fullmatch(rf"5 tokens read in \d+\.\d s, {written} written, \d+\.\d a second\n", err)


def test_tokens_are_drawn_from_the_seed(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", tiny_gguf, "--prompt", PROMPT, "--temperature", 0.8, "--top-p", 0.9]
    for seed in (0, 7):
        sampling = Sampling(0.8, 0.9, np.random.default_rng(seed))
        chosen = ["--seed", seed] if seed else []
        out, _ = run(capsys, *common, *chosen)
        assert out == expected(tiny_gguf, count=128, sampling=sampling)


def test_with_chat_the_prompt_is_a_message_and_the_end_of_the_turn_ends_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    markers = {"b": "<|im_start|>", "c": "<|im_end|>"}
    metadata = fields() | {
        "add_token_list": [markers.get(token, token) for token in TOKENS],
        "add_token_types": [3 if token in ("b", "c", END) else 1 for token in TOKENS],
        "add_chat_template": "{{ '<|im_start|>system\nDo it<|im_end|>\n' + message }}",
    }
    path = write_gguf(tmp_path / "chat.gguf", metadata=metadata)
    tokenizer = load_model(path).tokenizer
    start, end = TOKENS.index("b"), TOKENS.index("c")
    given: list[Any] = []

    def writes(params: Any, ids: np.ndarray, *, stop: Any, **options: Any) -> Iterator[int]:
        given.extend([ids.tolist(), stop])
        yield from (*tokenizer.encode("the end").tolist(), end)

    monkeypatch.setattr(command, "generate", writes)
    out, _ = run(capsys, "--model", path, "--prompt", "the", "--chat")
    assert out == "the end\n"
    turns = [("system\nDo it", True), ("user\nthe", True), ("assistant\n", False)]
    ids: list[int] = []
    for text, closed in turns:
        ids += [start, *tokenizer.encode(text).tolist()]
        ids += [end, *tokenizer.encode("\n").tolist()] if closed else []
    assert given == [ids, (end,)]


def test_without_a_model_the_packaged_one_is_fetched(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "fetch", lambda name: {"smollm2": tiny_gguf}[name])
    out, err = run(capsys, "--prompt", PROMPT, "--max-tokens", 1)
    assert out == expected(tiny_gguf, count=1)
    assert re.fullmatch(r"5 tokens read in \d+\.\d s, 1 written\n", err)


def test_what_does_not_fit_the_context_is_not_generated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gguf(tmp_path / "short.gguf", metadata=fields() | {"add_context_length": 8})
    out, err = run(capsys, "--model", path, "--prompt", PROMPT)
    assert out == expected(path, count=3)
    assert "3 written" in err
    message = fails(capsys, "generate", "--model", str(path), "--prompt", "a" * 8)
    assert message.endswith("error: --prompt must have 1 to 7 tokens for this model, got 8")


def test_an_interrupt_leaves_the_text_so_far(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(params: Any, ids: np.ndarray, **options: Any) -> Iterator[int]:
        yield TOKENS.index("the")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "generate", interrupted)
    assert main(["generate", "--model", str(tiny_gguf), "--prompt", PROMPT]) == 130
    shown = capsys.readouterr()
    assert shown.out == "the\n"
    assert re.fullmatch(r"5 tokens read in \d+\.\d s, 1 written\n", shown.err)


def test_the_text_comes_piece_by_piece(tiny_gguf: Path) -> None:
    program = [sys.executable, "-m", "topk_np", "generate", "--model", str(tiny_gguf)]
    with subprocess.Popen(
        [*program, "--prompt", PROMPT, "--max-tokens", "1500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        assert process.poll() is None  # it is still writing
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "gpt2"],
            "--model must be smollm2, the path of a GGUF file or of a folder, got 'gpt2'",
        ),
        (["--prompt", ""], "--prompt must have 1 to 2047 tokens for this model, got 0"),
        (["--temperature", "-1"], "temperature must be at least 0, got -1.0"),
        (["--temperature", "nan"], "temperature must be finite"),
        (["--top-p", "0"], "top_p must be above 0 and at most 1, got 0.0"),
        (["--top-p", "x"], "argument --top-p: invalid float value: 'x'"),
        (["--attention-k", "0"], "argument --attention-k: must be at least 1, got 0"),
        (["--max-tokens", "0"], "argument --max-tokens: must be at least 1, got 0"),
        (["--chat"], "the model's chat template must be one with <|im_start|>, got ''"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    usual = ["generate", "--model", str(tiny_gguf), "--prompt", PROMPT]
    assert message in fails(capsys, *usual, *arguments)


def test_damaged_files_and_failed_downloads_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GG")
    usual = ["generate", "--prompt", PROMPT]
    assert "is not a readable GGUF file" in fails(capsys, *usual, "--model", str(path))

    def offline(name: str) -> Path:
        raise FetchError("no network")

    monkeypatch.setattr(load, "fetch", offline)
    assert fails(capsys, *usual) == "topk_np generate: error: no network"
