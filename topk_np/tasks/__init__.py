"""
Data to train on: a file for each task, each with functions that make a `Task`.

`load` makes one by name, as ``python -m topk_np train`` does.
"""

from topk_np.tasks.examples import PAD, Examples, Task
from topk_np.tasks.names import MissingDataError, load

__all__ = ["PAD", "Examples", "MissingDataError", "Task", "load"]
