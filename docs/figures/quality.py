"""Draw what top-k costs a pretrained model: `python docs/figures/quality.py` writes quality.svg.

The numbers are those of docs/data/experiments/perplexity.json, which `make experiments` made.
"""

from __future__ import annotations

import json

from style import BLUE, DATA, ORANGE, axes, save

KEYS, UNITS = 1024, 1536
CURVES = (
    ("attention_k", KEYS, "attention", BLUE, "o", (5, 2)),
    ("ffn_k", UNITS, "feed-forward", ORANGE, "s", (7, 2)),
)


def main() -> None:
    saved = json.loads((DATA / "experiments" / "perplexity.json").read_text(encoding="utf-8"))
    points = [p for p in saved["points"] if p["setting"]["tokens"] == KEYS]
    (dense,) = (p["result"]["perplexity"] for p in points if p["setting"].keys() == {"tokens"})
    ax = axes(6.4, 3.8)
    for option, of, label, colour, marker, shift in CURVES:
        curve = {
            p["setting"][option]: 100 * (p["result"]["perplexity"] / dense - 1)
            for p in points
            if p["setting"].keys() == {"tokens", option}
        }
        shares = [k / of for k in curve]
        ax.loglog(shares, curve.values(), color=colour, marker=marker, label=label)
        for k, share, rise in zip(curve, shares, curve.values(), strict=True):
            ax.annotate(f"{k:,}", (share, rise), shift, textcoords="offset points", color=colour)
    ticks = [1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    ax.set_xticks(ticks, [f"1/{round(1 / tick)}" for tick in ticks])
    rises = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    ax.set_yticks(rises, [f"{rise:g} %" for rise in rises])
    ax.minorticks_off()
    ax.set(
        xlim=(1 / 160, 1),
        xlabel=f"share kept, of {KEYS:,} keys a query or {UNITS:,} units a token",
        ylabel="rise of the perplexity",
    )
    ax.legend(frameon=False)
    save(ax, __file__)


if __name__ == "__main__":
    main()
