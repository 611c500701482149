"""Experiments: what top-k does to trained models, measured point by point and kept in a file.

An experiment is a module with three functions: `prepare` loads what it needs and says what to
measure, `table` and `draw` show what was found. `EXPERIMENTS` has their names; `run` does one.
"""

from topk_np.studies.names import EXPERIMENTS
from topk_np.studies.runner import run

__all__ = ["EXPERIMENTS", "run"]
