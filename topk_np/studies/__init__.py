"""
Studies of the effect of top-k on trained models, measured point by point and kept in a file.

A study is a module with four functions: `prepare` loads what it needs and lists the settings to
measure with, `label` names a setting, `table` and `draw` show the results. `EXPERIMENTS` has the
names of the studies; `run` does one. `demo` is a preset of them, and `results` makes the runs of
training that the documentation reports.
"""

from topk_np.studies.runner import EXPERIMENTS, run

__all__ = ["EXPERIMENTS", "run"]
