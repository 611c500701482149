"""Our functions as functions of JAX arrays, which JAX can differentiate and compile around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from topk_np._vjp import check_pair
from topk_np.interop.call import Call, check_output

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError("topk_np.interop.jax needs JAX: pip install 'topk_np[jax]'") from error

__all__ = ["as_jax"]

Array = Any


def as_jax(
    fwd: Callable[..., tuple[Any, Any]], bwd: Callable[[Any, Any], Any], /
) -> Callable[..., Array]:
    """
    Join a forward and a backward function into a differentiable function of JAX arrays.

    The work is done on NumPy arrays, by the functions given, so that the result is an oracle for
    other code on JAX: its values and gradients come from no operation of XLA.

    Parameters
    ----------
    fwd : callable
        ``fwd(*arrays, **options) -> (out, residuals)``, such as `topk_attention_fwd`.
    bwd : callable
        ``bwd(residuals, dout) -> gradients``, such as `topk_attention_bwd`: a tuple with those of
        the arguments in order, or a named tuple with those of options too, by name.

    Returns
    -------
    callable
        ``f(*arrays, **options) -> array``, or a tuple of them where `fwd` has one (as with
        ``return_lse=True``). Takes what `fwd` takes, with JAX arrays for arrays, also
        as options (`mask`) and in named tuples (`MultiheadWeights`). Functions among the options
        are called with NumPy arrays. Options that are no arrays are static under `jax.jit`.

    Raises
    ------
    TypeError
        If `fwd` or `bwd` cannot be called. Errors of the function itself are those of `fwd` and
        `bwd`; where JAX traces it they are raised while it does.

    Notes
    -----
    `jax.grad`, `jax.vjp`, `jax.jit` and `jax.vmap` work, the last one call after another; forward
    mode and second derivatives do not. JAX keeps the inputs alone for the backward pass, which
    therefore runs the forward pass again. Where JAX traces the function, as `jax.jit` does, it
    becomes a `jax.pure_callback`, and `fwd` is run once on zeros to learn the output's shape.
    Arrays on another device are copied to the host, and results back. A floating input for which
    `bwd` has no gradient gets one of NaN.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from topk_np import topk_attention_bwd, topk_attention_fwd
    >>> from topk_np.interop.jax import as_jax
    >>> attention = as_jax(topk_attention_fwd, topk_attention_bwd)
    >>> def loss(key):
    ...     return attention(5 * key[:1], key, jnp.arange(4.0)[:, None], k=2).sum()
    >>> jax.jit(jax.grad(loss))(jnp.eye(4)).shape
    (4, 4)
    """
    check_pair(fwd, bwd)

    def function(*args: Any, **options: Any) -> Array:
        call = Call(args, options)
        arrays = [jnp.asarray(array) for array in call.arrays(_ARRAYS)]
        return _differentiable(_Run(fwd, bwd, call))(*arrays)

    return function


_ARRAYS = (jax.Array, np.ndarray)  # JAX takes either


class _Run:
    """A call on NumPy arrays; nothing is kept from the forward pass to the backward pass."""

    def __init__(self, fwd: Any, bwd: Any, call: Call) -> None:
        self._fwd, self._bwd, self._call = fwd, bwd, call

    def forward(self, *arrays: Array) -> Any:
        _, out, _ = self._forward(arrays)
        return out

    def backward(self, dout: Array, *arrays: Array) -> list[np.ndarray]:
        """The gradients of the floating arrays."""
        call, _, residuals = self._forward(arrays)
        grads = call.gradients(self._bwd(residuals, jax.tree.map(np.asarray, dout)))
        return [
            np.full(array.shape, np.nan, array.dtype) if grad is None else grad
            for array, grad in zip(arrays, grads, strict=True)
            if _is_floating(array)
        ]

    def _forward(self, arrays: tuple[Array, ...]) -> tuple[Call, Any, Any]:
        call = self._call.with_arrays(_ARRAYS, [np.asarray(array) for array in arrays])
        out, residuals = self._fwd(*call.args, **call.options)
        check_output(out)
        return call, out, residuals


def _differentiable(run: _Run) -> Any:
    """A run as a function of its arrays."""

    def forward(*arrays: Array) -> Any:
        def shape() -> Any:
            # Errors of the call come up here, too: a callback should have none.
            out = run.forward(*(np.zeros(array.shape, array.dtype) for array in arrays))
            return jax.tree.map(_shape, out)

        return _on_host(run.forward, shape, *arrays)

    def backward(arrays: tuple[Array, ...], dout: Any) -> tuple[Array | None, ...]:
        floating = [_is_floating(array) for array in arrays]

        def shapes() -> Any:
            return [_shape(array) for array, is_one in zip(arrays, floating, strict=True) if is_one]

        grads = iter(_on_host(run.backward, shapes, dout, *arrays))
        return tuple(next(grads) if is_one else None for is_one in floating)

    function = jax.custom_vjp(forward)
    function.defvjp(lambda *arrays: (forward(*arrays), arrays), backward)
    return function


def _on_host(function: Callable[..., Any], shape: Callable[[], Any], *arrays: Any) -> Any:
    """The result of `function`: at once, or, where JAX traces, once the arrays are known."""
    if any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays)):
        return jax.pure_callback(function, shape(), *arrays, vmap_method="sequential")
    return jax.tree.map(jnp.asarray, function(*arrays))


def _shape(array: Array) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _is_floating(array: Array) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))
