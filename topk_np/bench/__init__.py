"""
The benchmark: time and memory of topk_np against other ways to compute the same.

`cases` says what is computed, `peers` and `torch_peers` how; `step` and `torch_step` are a step of
training. `sweep` and `figures` decide what is run, `report` and `plots` show it.
"""

from topk_np.bench.command import run

__all__ = ["run"]
