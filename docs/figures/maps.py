"""Draw what two heads of a real model attend to: `python docs/figures/maps.py` writes maps.png.

SmolLM2-135M reads the beginning of Python's documentation. It takes some seconds, once the weights
(93 MB) have been fetched.
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from style import INK

from topk_np import topk_attention_fwd
from topk_np.diagnostics import kept_mass, plot_attention
from topk_np.models import load_model
from topk_np.models.fetch import fetch
from topk_np.models.llama import causal_attention, forward

TOKENS, K = 96, 8
HEADS = {  # layer, group of heads, head of the group
    "layer 0, head 0": (0, 0, 0),
    "layer 10, head 5": (10, 1, 2),
}


def queries_and_keys() -> list[tuple[Any, Any]]:
    """Those of each layer: (3, 3, Q, D) and (3, 1, N, D), as three heads share a key."""
    model = load_model(fetch("smollm2"))
    text = "\n".join(topics[name] for name in sorted(topics))
    seen: list[tuple[Any, Any]] = []

    def attention(query: Any, key: Any, value: Any) -> Any:
        seen.append((query, key))
        return causal_attention(query, key, value, k=None)

    forward(model, model.tokenizer.encode(text[:2000])[:TOKENS], attention=attention)
    return seen


def main() -> None:
    mpl.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "font.size": 11})
    figure = Figure(figsize=(9.2, 8.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(2, 2)
    seen = queries_and_keys()
    for row, (title, (layer, *head)) in zip(axes, HEADS.items(), strict=True):
        query, key = seen[layer]
        mass = kept_mass(query, key, k=K, is_causal=True)[tuple(head)].mean()
        for ax, k, what in zip(row, (TOKENS, K), ("dense", f"the {K} best keys"), strict=True):
            _, residuals = topk_attention_fwd(query, key, key, k=k, is_causal=True)
            plot_attention(residuals, head=tuple(head), ax=ax)
            ax.set_title(f"{title}\n{what}" + (f", {mass:.0%} of the mass" if k == K else ""))
    path = Path(__file__).with_suffix(".png")
    options = {"bbox_inches": "tight", "pad_inches": 0.1}  # labels are not cut at the edges
    figure.savefig(path, dpi=110, metadata={"Software": None}, **options)
    print(path)


if __name__ == "__main__":
    main()
