"""The demo, run on a tiny model through the code that runs the real one."""

from __future__ import annotations

import errno
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from tests.models.tiny import fields, write_gguf
from tests.test_cli import fails
from topk_np import fetch
from topk_np.cli import main
from topk_np.models.gguf import read_gguf
from topk_np.models.llama import Llama
from topk_np.models.scoring import NextTokens
from topk_np.schedule import threads
from topk_np.studies import demo, demo_report, reading
from topk_np.studies.demo_report import PASS_KEY, Row
from topk_np.studies.reading import Prompt
from topk_np.studies.runner import Setting

WORDS = "The path of the theme. " * 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's file."""
    return write_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Llama:
    """The tiny model."""
    return read_gguf(tiny)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file."""
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def row(setting: Setting, **changes: Any) -> Row:
    """A line of the table."""
    values: dict[str, Any] = {
        "keys_kept": 1.0, "mass_kept": 1.0, "perplexity": 10.0, "accuracy": 0.5,
        "scratch": 32 * 2**20, "chunk_scratch": 2**20, "seconds": 2.0, "answer": PASS_KEY,
    }  # fmt: skip
    return setting, values | changes


def compare(
    model: Llama, prompt: Prompt, ks: list[int], tick: Callable[[], object]
) -> list[SimpleNamespace]:
    """Measure with each setting, the dense one first."""
    prepared = demo.prepare(model, prompt, ks)
    return [SimpleNamespace(**prepared.measure(s, tick)) for s in prepared.settings]


def test_the_demo_prints_its_table_and_saves_its_plot(
    tiny: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    arguments = [
        "--weights",
        tiny,
        "--text",
        text,
        "--tokens",
        256,
        "--k",
        4,
        100,
        4,
        "--plot",
        plot,
    ]
    assert main(["demo", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny reads 256 tokens of words.txt\n(2 layers, 4 heads on 2, 64 feed")
    table = out.split("-" * 88)[1].strip().splitlines()
    assert [line[:22].strip() for line in table] == [
        "dense", "attention k = 100", "attention k = 64", "attention k = 4", "feed-forward k = 21"
    ]  # fmt: skip
    assert [line.count("%") for line in table] == [3] * 5
    assert out.count("right\n") + out.count("wrong\n") == 5
    assert [line[:2] for line in out.splitlines()[-5:-2]] == ["1.", "2.", "3."]
    assert out.endswith(f"\nPlot: {plot}\n")
    assert imread(plot).shape[:2] == (768, 1600)


def test_without_options_the_demo_reads_pythons_documentation_with_the_fetched_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "fetch", lambda name: {"smollm2": tiny}[name])
    assert main(["demo", "--k", "64"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("SmolLM2-135M-Instruct reads 1,024 tokens of Python's documentation\n")
    assert (tmp_path / "topk_np_demo.png").is_file()


def test_rows_measure_what_they_are_called(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    # How much two threads hold at once depends on when each gets its turn.
    monkeypatch.setattr(threads, "available_cores", lambda: 1)
    ids = model.tokenizer.encode(WORDS)[:300]
    prompt = demo.make_prompt(model.tokenizer, ids)
    ticks: list[None] = []
    rows = compare(model, prompt, [300, 64, 2], lambda: ticks.append(None))
    assert len(ticks) == 5 * 2
    dense, every, most, few, ffn = rows
    assert every.perplexity == pytest.approx(dense.perplexity, rel=1e-5)
    assert every.accuracy == dense.accuracy
    assert [r.keys_kept for r in (dense, every, ffn)] == [1.0] * 3
    assert few.keys_kept == pytest.approx(sum(min(i, 2) for i in range(1, 301)) / (300 * 301 / 2))
    assert 0 < few.mass_kept < most.mass_kept < every.mass_kept == pytest.approx(1, abs=1e-6)
    assert ffn.perplexity != dense.perplexity
    assert few.scratch < dense.scratch
    assert dense.scratch >= 300 * 300 * 4
    assert dense.chunk_scratch < dense.scratch
    assert all(r.seconds > 0 and 0 <= r.accuracy <= 1 and len(r.answer) for r in rows)


def test_perplexity_and_accuracy_are_of_the_text_alone(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = model.tokenizer.encode(WORDS)[:200]
    prompt = demo.make_prompt(model.tokenizer, ids)

    def foresee(params: Any, hidden: Any, tokens: np.ndarray) -> Any:
        loss = np.where(prompt.is_text, np.log(3.0), 100.0)
        best = np.where(prompt.is_text, tokens[1:], tokens[1:])
        best[prompt.is_text.nonzero()[0][::2]] = 0
        return NextTokens(loss, best)

    monkeypatch.setattr(reading, "next_tokens", foresee)
    dense = compare(model, prompt, [64], lambda: None)[0]
    assert dense.perplexity == pytest.approx(3)
    assert dense.accuracy == pytest.approx(0.5, abs=0.02)
    assert dense.answer == PASS_KEY


def test_the_prompt_hides_the_key_and_keeps_the_length(model: Llama) -> None:
    ids = model.tokenizer.encode(WORDS)[:250]
    prompt = demo.make_prompt(model.tokenizer, ids)
    written = model.tokenizer.decode(prompt.ids)
    assert len(prompt.ids) == 250
    assert written.count(PASS_KEY) == 3
    assert written.endswith(f"What is the pass key? The pass key is {PASS_KEY}")
    assert model.tokenizer.decode(prompt.ids[-prompt.digits :]) == PASS_KEY
    text = np.concatenate([[True], prompt.is_text])
    assert np.array_equal(prompt.ids[text], ids[: text.sum()])
    first, last = np.flatnonzero(~text)[[0, -1]]
    assert first == text.sum() // 2
    assert last == 249


def test_the_time_of_a_run_is_without_that_of_observing(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def observe(query: Any, key: Any, value: Any) -> None:
        clock[0] += 100

    monkeypatch.setattr(demo, "perf_counter", lambda: clock[0])
    prompt = demo.make_prompt(model.tokenizer, model.tokenizer.encode(WORDS)[:150])

    def tick() -> None:
        clock[0] += 1

    _, seconds = demo.timed_read(model, prompt.ids, tick, observe)
    assert seconds == 2  # one tick a layer


def test_scratch_of_topk_is_a_small_part_of_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 1, 4096, 4), dtype=np.float32)
    textbook = demo.attention_scratch((query, key, value), None, in_chunks=False)
    assert textbook >= 4096 * 4096 * 4
    # however many threads share the work, up to eight
    assert demo.attention_scratch((query, key, value), 8) < textbook / 5


def test_scratch_does_not_count_what_is_imported_on_first_use() -> None:
    code = (
        "import numpy as np\n"
        "from topk_np.studies.demo import attention_scratch as scratch\n"
        "x = np.ones((1, 1, 256, 4), np.float32)\n"
        "print(scratch((x, x, x), 8), scratch((x, x, x), 8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first < 2 * second


def test_findings_follow_from_the_figures() -> None:
    rows = [
        row({}),
        row({"attention_k": 64}, keys_kept=0.12, mass_kept=0.9, perplexity=11.0, scratch=2**21),
        row({"attention_k": 8}, perplexity=20.0, answer="1"),
        row({"ffn_k": 1512}, perplexity=9.0),
    ]
    assert demo_report.findings(rows).splitlines() == [
        "1. k = 64 keeps 12% of the keys and 90% of the softmax mass: perplexity 10.00 -> 11.00 "
        "(+10.0%), not retrained.",
        "2. Attention's scratch goes from 32.0 to 2.0 MiB; dense finds the pass key, k = 64 "
        "finds it.",
        "3. Feed-forward layers need a larger share: with 1 unit in 3 (1,512) perplexity "
        "10.00 -> 9.00 (-10.0%).",
    ]
    assert "'1'  wrong" in demo_report.pass_key(rows)
    missed = [
        row({}, answer="5"),
        row({"attention_k": 64}, answer="6"),
        row({"ffn_k": 3}),
    ]
    assert "dense misses the pass key, k = 64 misses it" in demo_report.findings(missed)


def _file(content: bytes) -> Any:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "--text {path}: No such file or directory"),
        (lambda path: path.mkdir(), "--text {path}: Is a directory"),
        (_file(b""), "--text {path} is empty"),
        (_file(b" \n "), "--text {path} is empty"),
        (_file(b"\x89PNG\r\n\x1a\n\xff"), "--text {path} is not UTF-8 text"),
        (_file(b"words\0words" * 99), "--text {path} is not text: it has zero bytes"),
        (_file(b"a few words"), "x.txt is too short: it has 11 tokens, fewer than --tokens 256"),
    ],
)
def test_texts_that_cannot_be_read_are_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, message: str
) -> None:
    path = tmp_path / "x.txt"
    make(path)
    plot = str(tmp_path / "plot.png")
    line = fails(
        capsys,
        "demo",
        "--weights",
        str(tiny),
        "--text",
        str(path),
        "--tokens",
        "256",
        "--plot",
        plot,
    )
    assert line == "topk_np demo: error: " + message.format(path=path)


def test_texts_that_the_vocabulary_cannot_spell_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {name: value for name, value in fields().items() if name != "add_unk_token_id"}
    weights = write_gguf(tmp_path / "strict.gguf", metadata=metadata)
    text = tmp_path / "x.txt"
    text.write_text("é" + WORDS)
    line = fails(
        capsys, "demo", "--weights", str(weights), "--text", str(text), "--tokens", "256",
        "--plot", str(tmp_path / "plot.png"),
    )  # fmt: skip
    assert line == "topk_np demo: error: x.txt: text has bytes that the vocabulary lacks"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tokens", "20", "--tokens must be at least 117, to hide a pass key, got 20"),
        ("--tokens", "9999", "--tokens must be at most 2048, the model's limit, got 9999"),
        ("--weights", "nowhere.gguf", "--weights nowhere.gguf: No such file or directory"),
        ("--weights", "words.txt", "--weights: words.txt is not a readable GGUF file: "),
        ("--plot", "plot.doc", "--plot must end in one of ."),
        ("--plot", "plot", "--plot must end in one of ."),
        ("--plot", "nowhere/plot.png", "--plot nowhere/plot.png: there is no folder nowhere"),
        ("--plot", "folder.png", "--plot folder.png cannot be written"),
    ],
)
def test_wrong_options_are_one_line(
    tiny: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.chdir(text.parent)
    Path("folder.png").mkdir()
    options = {"--weights": str(tiny), "--text": "words.txt", "--tokens": "256"} | {option: value}
    line = fails(capsys, "demo", *(part for pair in options.items() for part in pair))
    assert line.startswith(f"topk_np demo: error: {message}")


def test_a_failed_download_is_one_line(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(name: str) -> Path:
        raise fetch.FetchError("no network")

    monkeypatch.setattr(demo, "fetch", failing)
    line = fails(capsys, "demo", "--text", str(text), "--plot", str(tmp_path / "plot.png"))
    assert line == "topk_np demo: error: no network"


def test_a_plot_that_cannot_be_saved_after_all_is_one_line(
    tiny: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    plot = tmp_path / "plot.png"
    arguments = ["--weights", tiny, "--text", text, "--tokens", 256, "--plot", plot]
    assert main(["demo", *map(str, arguments)]) == 2
    assert capsys.readouterr().err.endswith(
        f"topk_np demo: error: --plot {plot}: No space left on device\n"
    )


def test_the_text_is_read_no_further_than_needed(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(string.ascii_letters * 1000)
    name, words = demo.read_text(path, 10)
    assert name == "long.txt"
    assert len(words) == 10 * demo.MOST_CHARACTERS
