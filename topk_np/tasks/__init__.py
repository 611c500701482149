"""Data to train on: a file for each task, each with a function that makes a `Task`."""

from topk_np.tasks.examples import Examples as Examples
from topk_np.tasks.examples import Task as Task
