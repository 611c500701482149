"""The part of the suite that mutants are run on, in processes that start with all but our code."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

# What the tests import beside the package is loaded here once, and found loaded after a fork.
import array_api_strict  # noqa: F401
import hypothesis.extra.numpy  # noqa: F401
import ml_dtypes  # noqa: F401
import pytest
import scipy.sparse
import scipy.special  # noqa: F401

ATTENTION = ("test_heads", "test_promises", "test_options", "test_masking", "test_attention")
CORE = {
    "activations": ("test_activations", "test_promises", "test_options", "test_ffn"),
    "attention": ("test_promises", "test_attention", "test_inputs", "test_errors"),
    "core/dense": (
        "test_dense",
        "test_heads",
        "test_promises",
        "test_options",
        "test_masking",
        "test_bias",
        "test_ffn",
    ),
    "core/keep": ("test_keeping", "test_rules", *ATTENTION, "test_ffn"),
    "core/passes": (*ATTENTION, "test_dropout", "test_ffn"),
    "core/residuals": ("test_residuals", "test_planning"),
    "core/scores": (*ATTENTION, "test_bias", "test_ffn"),
    "ffn": ("test_ffn", "test_errors", "test_inputs"),
    "kernels/numpy/hits": ("kernels/test_select", "test_selection", "test_attention"),
    "kernels/numpy/products": ("kernels/test_products", *ATTENTION),
    "kernels/numpy/rowwise": ("kernels/test_scores", "test_promises", "test_ffn"),
    "kernels/numpy/running": ("kernels/test_select", "test_selection", "test_keeping", *ATTENTION),
    "kernels/numpy/select": ("kernels/test_select", "test_selection", "test_attention"),
    "options/bias": ("test_bias", "test_options", "test_errors", "test_call"),
    "options/check": ("test_call", "test_errors", "test_inputs", *ATTENTION, "test_ffn"),
    "options/chunk": ("test_call", "test_masking", "test_options", "test_errors", "test_decoding"),
    "options/masks": ("test_masking", "test_options", "test_errors", "test_promises", "test_heads"),
    "options/rules": ("test_rules", "test_options", "test_errors"),
    "schedule/gradients": ("test_gradients", "test_bias", "test_dense", *ATTENTION),
    "schedule/plan": ("test_schedule", "test_planning", "test_heads", "test_errors"),
    "selection": ("test_selection", "test_attention", "test_options"),
}
"""The modules that are mutated, and the tests that are run on the mutants of each."""
# The strict library, which takes long, has a say where its way and NumPy's part.
CHOSEN = (
    "not cupy and not the_predicted_peak and not buckets_are_those_of_t5 "
    "and not (topk_ffn_gradients_are_slopes and (plain or unbiased or tanh or identity)) "
    "and (not strict or test_activations or test_selection or test_rules)"
)
OPTIONS = ("-q", "-x", "--tb=line", "--assert=plain", "-p", "no:cacheprovider")
# A mutant may run for ever, or ask for all there is.
TIMEOUT = 100  # seconds for one test
PROCESSOR = 100  # seconds of processor time for all
MEMORY = 12 * 2**30  # bytes of address space


def passes(mutated: Path) -> bool:
    """Whether the tests of a module in the current folder pass; the first file decides most."""
    tests = CORE[mutated.relative_to("topk_np").with_suffix("").as_posix()]
    return all(_in_a_fork(names) for names in (tests[:1], tests[1:]) if names)


def whole_suite_passes() -> bool:
    """Whether all tests that any module has pass, where they can be seen to."""
    return _in_a_fork(sorted({name for tests in CORE.values() for name in tests}), quiet=False)


def _in_a_fork(names: Sequence[str], *, quiet: bool = True) -> bool:
    """Whether some test files pass in a process of their own."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = _run(names, quiet)
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def _run(names: Sequence[str], quiet: bool) -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ.update(TOPK_NP_BACKENDS="numpy,strict", TOPK_NP_PROFILE="mutants")
    # The tests beside the mutant are to be run, not those that this module came with.
    sys.path.insert(0, os.getcwd())
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    files = [f"tests/{name}.py" for name in names]
    return int(pytest.main([*OPTIONS, "-o", f"timeout={TIMEOUT}", "-k", CHOSEN, *files]))
