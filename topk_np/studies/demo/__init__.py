"""The demonstration: a pretrained language model reads real text, dense and with top-k attention.

`inputs` checks what the user asks for, `experiment` measures, `report` and `plot` show.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from topk_np._process import UserError

__all__ = ["run"]


def run(
    *, ks: Sequence[int], tokens: int, text: Path | None, weights: Path | None, plot: Path
) -> None:
    """
    Measure, print the table and what it shows, and save the plot.

    Parameters
    ----------
    ks : sequence of int
        Keys kept for each query, one run each.
    tokens : int
        How much of the text to read.
    text : Path, optional
        A text file, by default Python's own documentation.
    weights : Path, optional
        A GGUF file, by default SmolLM2-135M, which is downloaded once.
    plot : Path
        Where the plot goes.

    Raises
    ------
    UserError, FetchError
        With a message of one line.
    """
    from tqdm import tqdm

    from topk_np.studies.demo import experiment, inputs, report
    from topk_np.studies.demo.plot import save_plot

    inputs.check_plot(plot)
    source, words = inputs.read_text(text, tokens)
    name, model = inputs.load_model(weights)
    ids = inputs.encode(model, words, tokens, source)
    chosen = experiment.chosen_ks(ks)
    prompt = experiment.make_prompt(model.tokenizer, ids)
    steps = (len(chosen) + 2) * len(model.params["layers"])
    with tqdm(total=steps, desc="demo", unit="layer", leave=False) as bar:
        rows = experiment.compare(model, prompt, chosen, bar.update)
    print(report.heading(name, model, tokens, source))
    print(report.table(rows))
    print(report.pass_key(rows))
    print(report.findings(rows))
    try:
        save_plot(plot, rows, name, f"{tokens:,} tokens of {source}")
    except OSError as error:
        raise UserError(f"--plot {plot}: {error.strerror}") from error
    print(f"\nPlot: {plot}")
