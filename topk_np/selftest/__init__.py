"""
The self-test: the properties of `topk_np.testing` and large problems on a device, and times.

`device` finds the device and times it; `command` checks it and reports.
"""

from topk_np.selftest.command import run

__all__ = ["run"]
