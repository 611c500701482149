"""The implementation under test: what it takes, and calls of it with NumPy arrays in and out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from topk_np._namespace import Array, check_choice, check_integer
from topk_np._vjp import check_pair
from topk_np.testing.close import assert_near
from topk_np.testing.libraries import Library, find_library
from topk_np.testing.report import Raised

Implementation = Callable[..., Any]

DTYPES = ("float16", "bfloat16", "float32", "float64")


def check_names(argument: str, names: Collection[str], known: Collection[str]) -> None:
    """Check that all of some names are known."""
    if isinstance(names, str):
        raise TypeError(f"{argument} must be several names, got the string {names!r}")
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} must be among {', '.join(known)}, got {name!r}")


def named_options(function: Implementation, known: Collection[str]) -> frozenset[str]:
    """Those of the known options that a function's signature names."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C may have none
        return frozenset()
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return frozenset(p.name for p in parameters if p.kind in by_name and p.name in known)


@contextmanager
def calling() -> Iterator[None]:
    """Make an error of the implementation a finding, and its floating-point warnings nothing."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            yield
        except (Exception, SystemExit) as error:  # who exits has not passed
            text = " ".join(str(error).split())
            raise Raised(f"raised {type(error).__name__}: {text}") from error


@dataclass(frozen=True)
class Subject:
    """An implementation, the library it is written for, and the options it takes."""

    function: Implementation
    fwd: Implementation | None
    bwd: Implementation | None
    library: Library
    dtype: str
    options: frozenset[str]
    max_length: int
    """The most rows of a drawn problem's arrays."""

    KNOWN: ClassVar[tuple[str, ...]] = ()
    """The options of its kind."""

    @classmethod
    def of(
        cls,
        implementation: Implementation,
        options: Collection[str],
        library: str | Library,
        dtype: str,
        max_length: int,
        fwd: Implementation | None = None,
        bwd: Implementation | None = None,
        **more: Any,
    ) -> Self:
        """An implementation whose signature says what it takes, beside `options`; checked."""
        if not callable(implementation):
            raise TypeError(f"implementation must be callable, got {type(implementation).__name__}")
        if fwd is not None or bwd is not None:
            check_pair(fwd, bwd)
        check_names("options", options, cls.KNOWN)
        return cls(
            implementation,
            fwd,
            bwd,
            find_library(library, check_choice("dtype", dtype, DTYPES)),
            dtype,
            named_options(implementation, cls.KNOWN) | frozenset(options),
            check_integer("max_length", max_length, least=2),
            **more,
        )

    @property
    def differentiable(self) -> bool:
        """True if there is a way to its gradients."""
        return self.bwd is not None or self.library.differentiate is not None

    def has(self, *names: str) -> bool:
        """True if it has all of these options."""
        return self.options.issuperset(names)

    def put(self, arrays: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
        """The arrays in the library."""
        return tuple(map(self.library.asarray, arrays))

    def keywords(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options in the library."""
        return {name: self.library.value(value) for name, value in options.items()}

    def call(self, arrays: tuple[np.ndarray, ...], options: dict[str, Any]) -> Any:
        """Call the implementation, with arrays of its library."""
        inputs, keywords = self.put(arrays), self.keywords(options)
        with calling():
            return self.function(*inputs, **keywords)

    def out(self, arrays: tuple[np.ndarray, ...], options: dict[str, Any]) -> np.ndarray:
        """The output as a NumPy array."""
        return self.take("the output", self.call(arrays, options))

    def gradients(
        self, arrays: tuple[np.ndarray, ...], options: dict[str, Any], dout: np.ndarray
    ) -> Any:
        """The gradients, in the library: a tuple in the order of the arrays, and more by name."""
        inputs, keywords = self.put(arrays), self.keywords(options)
        (sent,) = self.put((dout,))
        with calling():
            if self.fwd is not None and self.bwd is not None:
                _, residuals = self.fwd(*inputs, **keywords)
                return self.bwd(residuals, sent)
            assert self.library.differentiate is not None
            return self.library.differentiate(
                lambda *moved: self.function(*moved, **keywords), inputs, sent
            )[1]

    def take(self, what: str, array: Any) -> np.ndarray:
        """An array of the library in NumPy."""
        if not hasattr(array, "dtype"):
            raise AssertionError(f"{what} is no array but {type(array).__name__}")
        with calling():
            return np.asarray(self.library.to_numpy(array))


def near(
    what: str,
    found: np.ndarray,
    wanted: np.ndarray,
    tolerance: float,
    where: np.ndarray | bool = True,
) -> None:
    """Assert that `found` is the float64 `wanted` up to the tolerance, at some places only."""
    if found.shape != wanted.shape:
        raise AssertionError(f"{what} has shape {found.shape}, expected {wanted.shape}")
    try:
        assert_near(np.where(where, found.astype(np.float64), wanted), wanted, tolerance)
    except AssertionError as error:
        raise AssertionError(f"{what} {error}") from None
