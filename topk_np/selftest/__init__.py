"""
The self-test: whether the package computes on a device what it computes in NumPy.

`device` finds the device, `problems` draws what is computed, `checks` says what has to hold,
`times` compares the kernels with what else there is, and `command` runs and reports it all.
"""

from topk_np.selftest.command import run

__all__ = ["run"]
