"""Draw measured memory against length: `python docs/figures/memory.py` writes memory.svg.

The numbers are those of the benchmark, in docs/data/bench: see docs/benchmarks.md.
"""

from __future__ import annotations

import json

from style import BLUE, DATA, GREY, INK, ORANGE, axes, save

MIB = 2**20
CURVES = (
    ("numpy", "dense, all scores at once", INK, "s", "--"),
    ("numpy-chunked", "dense, in chunks", GREY, "^", "-."),
    ("torch-sdpa", "PyTorch, fused", ORANGE, "D", ":"),
    ("topk_np", "top-k, k = 64", BLUE, "o", "-"),
)


def main() -> None:
    rows = [
        row
        for name in ("attention", "long")
        for row in json.loads((DATA / "bench" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        if row["mode"] == "forward+backward" and not row["causal"] and row["memory_bytes"]
    ]
    ax = axes(6.4, 3.8)
    for peer, label, colour, marker, line in CURVES:
        curve = sorted((row["keys"], row["memory_bytes"]) for row in rows if row["peer"] == peer)
        lengths, sizes = zip(*curve, strict=True)
        ax.loglog(lengths, sizes, line, color=colour, marker=marker, label=label)
    ticks = [512 * 2**i for i in range(8)]
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    sizes = [MIB * 4**i for i in range(1, 6)]
    names = ["4 MiB", "16 MiB", "64 MiB", "256 MiB", "1 GiB"]
    ax.set_yticks(sizes, names)
    ax.minorticks_off()
    ax.set(xlabel="length, queries and keys of a head", ylabel="peak beyond the inputs")
    ax.legend(frameon=False)
    save(ax, __file__)


if __name__ == "__main__":
    main()
