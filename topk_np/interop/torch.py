"""Our functions as functions of PyTorch tensors, which PyTorch can differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from topk_np._vjp import check_pair
from topk_np.interop.call import Call, check_output

try:
    import torch
except ImportError as error:
    raise ImportError(
        "topk_np.interop.torch needs PyTorch: pip install 'topk_np[torch]'"
    ) from error

__all__ = ["as_torch"]

Tensor = Any


def as_torch(
    fwd: Callable[..., tuple[Any, Any]], bwd: Callable[[Any, Any], Any], /
) -> Callable[..., Tensor]:
    """
    Join a forward and a backward function into a differentiable function of PyTorch tensors.

    The work is done on NumPy arrays, by the functions given, so that the result is an oracle for
    other code on PyTorch: its values and gradients come from no kernel of PyTorch.

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
        ``f(*tensors, **options) -> tensor``, or a tuple of them where `fwd` has one (as with
        ``return_lse=True``). Takes what `fwd` takes, with tensors for arrays, also
        as options (`mask`) and in named tuples (`MultiheadWeights`). Functions among the options
        are called with NumPy arrays. The result has the dtype and device of the first tensor.

    Raises
    ------
    TypeError
        If `fwd` or `bwd` cannot be called. The function itself raises it for NumPy arrays among
        its arguments, for tensors on several devices, and when a gradient is asked for that `bwd`
        does not give. Other errors are those of `fwd` and `bwd`.

    Notes
    -----
    On a CPU tensors and arrays share their memory, and nothing is copied. Tensors on another
    device are copied to the host, and results back. A tensor may not be written to between the
    forward and the backward pass; PyTorch raises a RuntimeError if it was. `torch.func.grad` and
    `torch.func.vjp` work, `torch.func.vmap`, forward mode and second derivatives do not.
    `torch.compile` leaves the call as it is and compiles what is around it.

    Examples
    --------
    >>> import torch
    >>> from topk_np import topk_attention_bwd, topk_attention_fwd
    >>> from topk_np.interop.torch import as_torch
    >>> attention = as_torch(topk_attention_fwd, topk_attention_bwd)
    >>> key = torch.eye(4, requires_grad=True)
    >>> out = attention(5 * key[:1], key, torch.arange(4.0)[:, None], k=2)
    >>> out.sum().backward()
    >>> key.grad.shape
    torch.Size([4, 4])
    """
    check_pair(fwd, bwd)

    def function(*args: Any, **options: Any) -> Tensor:
        call = Call(args, options)
        tensors = call.arrays(torch.Tensor)
        _check(call, tensors)
        run = _Run(fwd, bwd, call)
        outs = _Function.apply(run, *tensors)
        return outs if run.several else outs[0]

    uncompiled: Callable[..., Tensor] = torch.compiler.disable(function)
    return uncompiled


class _Run:
    """One call on NumPy arrays, forward and backward."""

    def __init__(self, fwd: Any, bwd: Any, call: Call) -> None:
        self._fwd, self._bwd, self._call = fwd, bwd, call
        self._residuals: Any = None
        self.several = False
        """Whether the output is a tuple."""

    def forward(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        self._call = self._call.with_arrays(torch.Tensor, arrays)
        out, self._residuals = self._fwd(*self._call.args, **self._call.options)
        check_output(out)
        self.several = isinstance(out, tuple)
        return out if self.several else (out,)

    def backward(self, *douts: np.ndarray) -> list[np.ndarray | None]:
        return self._call.gradients(self._bwd(self._residuals, douts if self.several else douts[0]))


class _Function(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    """The forward pass of a run."""

    @staticmethod
    def forward(run: _Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        outs = run.forward([_array(tensor) for tensor in tensors])
        return tuple(_tensor(out, tensors[0]) for out in outs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *douts: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # an error if one was written to: residuals share its memory
        needed = [i for i in range(len(tensors)) if ctx.needs_input_grad[1 + i]]
        found = _Gradient.apply(ctx.run, needed, len(douts), *douts, *tensors)
        grads = dict(zip(needed, found, strict=True))
        return None, *(grads.get(i) for i in range(len(tensors)))


class _Gradient(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    """The backward pass of a run, a function of the same tensors: it has no derivative."""

    @staticmethod
    def forward(run: _Run, needed: list[int], outs: int, *given: Tensor) -> tuple[Tensor, ...]:
        douts, tensors = given[:outs], given[outs:]
        grads = run.backward(*map(_array, douts))
        found = []
        for i in needed:
            grad = grads[i]
            if grad is None:
                raise TypeError(
                    f"there is no gradient for tensor {i} of the call, of shape "
                    f"{tuple(tensors[i].shape)}: detach it"
                )
            found.append(_tensor(grad, tensors[i]))
        return tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *dgrads: Tensor) -> None:
        raise RuntimeError("functions of topk_np.interop.torch cannot be differentiated twice")


def _check(call: Call, tensors: list[Tensor]) -> None:
    arrays = call.arrays(np.ndarray)
    if arrays:
        raise TypeError(
            f"expected tensors, got a NumPy array of shape {arrays[0].shape}; "
            "torch.from_numpy makes a tensor of it"
        )
    if not tensors:
        raise TypeError("expected at least one tensor, got none")
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise TypeError(f"tensors must be on one device, got {' and '.join(devices)}")


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor as a NumPy array, which shares its memory if that is the CPU's."""
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy(force=True)  # type: ignore[no-any-return]
    return tensor.view(torch.int16).numpy(force=True).view(_bfloat16())  # type: ignore[no-any-return]


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """A NumPy array of our own as a tensor on the device of another."""
    array = array if array.flags.writeable else array.copy()
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(like.device)


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 in NumPy needs ml_dtypes: pip install ml_dtypes") from error
    return ml_dtypes.bfloat16
