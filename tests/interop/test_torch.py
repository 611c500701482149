"""Our functions inside PyTorch."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import topk_np
from tests import calls
from tests.backends import backend
from tests.oracles import assert_all_close, assert_same_bits
from tests.strategies import AttentionProblem, FFNProblem, attention_QND, few_examples, ffn_FD

torch = pytest.importorskip("torch", reason="PyTorch is not installed; `make peers` installs it")

import topk_np.interop.torch  # noqa: E402
from topk_np.interop.torch import as_torch  # noqa: E402

TORCH = backend("torch")

topk_attention = as_torch(topk_np.topk_attention_fwd, topk_np.topk_attention_bwd)
dense_attention = as_torch(topk_np.dense_attention_fwd, topk_np.dense_attention_bwd)
topk_ffn = as_torch(topk_np.topk_ffn_fwd, topk_np.topk_ffn_bwd)
multihead = as_torch(topk_np.multihead_attention_fwd, topk_np.multihead_attention_bwd)


def normal(*shape: int, seed: int = 0, dtype: Any = None, grad: bool = True) -> Any:
    """A tensor of normal numbers, no two of which are equal."""
    numbers = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return torch.tensor(numbers, dtype=dtype or torch.float64, requires_grad=grad)


def qkv(queries: int = 4, keys: int = 6, **more: Any) -> tuple[Any, Any, Any]:
    return (
        normal(2, queries, 3, **more),
        normal(2, keys, 3, seed=1, **more),
        normal(2, keys, 5, seed=2, **more),
    )


class TestTheResultIsThatOnNumPyArrays:
    @given(problem=attention_QND())
    def test_of_attention(self, problem: AttentionProblem) -> None:
        expected = calls.topk_attention(problem)
        tensors, options, dout = problem.on(TORCH)
        for tensor in tensors:
            tensor.requires_grad_()
        out = topk_attention(*tensors, **options)
        out.backward(dout)
        assert_same_bits(out.detach().numpy(), expected.out)
        for tensor, grad in zip(tensors, expected.grads[:3], strict=True):
            assert_same_bits(tensor.grad.numpy(), grad)

    @given(problem=ffn_FD())
    @few_examples()
    def test_of_the_feed_forward_layer_and_its_optional_arrays(self, problem: FFNProblem) -> None:
        expected = calls.topk_ffn(problem)
        tensors, options, dout = problem.on(TORCH)
        leaves = [*tensors, *(options[name] for name in problem.optional)]
        for tensor in leaves:
            if tensor is not None:
                tensor.requires_grad_()
        out = topk_ffn(*tensors, **options)
        out.backward(dout)
        assert_same_bits(out.detach().numpy(), expected.out)
        grads = [None if tensor is None else tensor.grad.numpy() for tensor in leaves]
        assert_all_close(grads, expected.grads, size=problem.size)


class TestGradcheckPasses:
    @pytest.mark.parametrize("k", [1, 3, 6])
    def test_for_topk_attention(self, k: int) -> None:
        mask = torch.ones(4, 6, dtype=torch.bool).tril(3)
        assert torch.autograd.gradcheck(
            lambda *tensors: topk_attention(*tensors, k=k, mask=mask), qkv()
        )

    def test_for_dense_attention_with_options_by_position(self) -> None:
        offset = torch.tensor([2, 0])
        assert torch.autograd.gradcheck(
            lambda *tensors: dense_attention(*tensors, is_causal=True, query_offset=offset), qkv()
        )

    def test_for_a_gated_layer_with_biases(self) -> None:
        def layer(x: Any, keys: Any, values: Any, key_bias: Any, value_bias: Any, gate: Any) -> Any:
            more = {"key_bias": key_bias, "value_bias": value_bias, "gate": gate}
            return topk_ffn(x, keys, values, k=2, activation="silu", **more)

        shapes = ((3, 4), (5, 4), (5, 2), (5,), (2,), (5, 4))
        tensors = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        assert torch.autograd.gradcheck(layer, tensors)

    def test_for_a_bias_softcap_dropout_and_the_log_sum_exp(self) -> None:
        def attention(*tensors: Any) -> Any:
            *inputs, bias = tensors
            more = {"softcap": 2.0, "dropout": (0.3, 7), "return_lse": True}
            return topk_attention(*inputs, bias=bias, k=3, **more)

        assert torch.autograd.gradcheck(attention, (*qkv(), normal(1, 4, 6, seed=9)))

    def test_for_a_table_of_biases_in_a_dataclass(self) -> None:
        def attention(*tensors: Any) -> Any:
            *inputs, table = tensors
            return topk_attention(*inputs, bias=topk_np.T5Bias(table), k=3, query_offset=0)

        assert torch.autograd.gradcheck(attention, (*qkv(), normal(8, 2)))

    def test_for_weights_in_a_named_tuple(self) -> None:
        def layer(x: Any, *weights: Any) -> Any:
            return multihead(x, topk_np.MultiheadWeights(*weights), heads=2, k=3)

        weights = [normal(4, 4, seed=1 + i) for i in range(4)]
        assert torch.autograd.gradcheck(layer, [normal(5, 4), *weights])


class TestAgainstPyTorch:
    def test_all_keys_give_the_attention_and_gradients_of_pytorch(self) -> None:
        sdpa: Callable[..., Any] = torch.nn.functional.scaled_dot_product_attention
        ours, theirs = qkv(6, 6), qkv(6, 6)
        out, expected = topk_attention(*ours, k=6, is_causal=True), sdpa(*theirs, is_causal=True)
        torch.testing.assert_close(out, expected)
        dout = normal(*out.shape, seed=3, grad=False)
        out.backward(dout)
        expected.backward(dout)
        for tensor, like in zip(ours, theirs, strict=True):
            torch.testing.assert_close(tensor.grad, like.grad)

    def test_fewer_keys_give_what_pytorch_gives_on_those(self) -> None:
        def written_out(query: Any, key: Any, value: Any) -> Any:
            scores, indices = torch.topk(query @ key.mT / 3**0.5, 2)
            heads = torch.arange(2)[:, None, None]
            return (scores.softmax(-1)[..., None] * value[heads, indices]).sum(-2)

        ours, theirs = qkv(), qkv()
        out, expected = topk_attention(*ours, k=2), written_out(*theirs)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        for tensor, like in zip(ours, theirs, strict=True):
            torch.testing.assert_close(tensor.grad, like.grad)


class TestTensors:
    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
    def test_results_have_the_dtype_of_the_tensors(self, name: str) -> None:
        tensors = qkv(dtype=getattr(torch, name))
        out = topk_attention(*tensors, k=3)
        out.sum().backward()
        wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
        expected = topk_attention(*wide, k=3)
        expected.sum().backward()
        close = {"rtol": 0.02, "atol": 0.02} if "16" in name else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(out.double(), expected, **close)
        for tensor, like in zip(tensors, wide, strict=True):
            assert tensor.grad.dtype == tensor.dtype
            torch.testing.assert_close(tensor.grad.double(), like.grad, **close)

    def test_strided_expanded_and_parameter_tensors(self) -> None:
        query = torch.nn.Parameter(normal(3, 8).detach())
        key, value = normal(1, 3, 6), normal(4, 1, 5)
        expanded = value.expand(4, 6, 5)
        out = topk_attention(query.mT[::2], key.mT, expanded, k=2)
        expected = topk_attention(
            query.mT[::2].contiguous(), key.mT.contiguous(), expanded.contiguous(), k=2
        )
        assert_same_bits(out.detach().numpy(), expected.detach().numpy())
        grads = [torch.autograd.grad(each.sum(), (query, key, value)) for each in (out, expected)]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)

    def test_a_gradient_is_given_to_what_requires_one_alone(self) -> None:
        query, key, value = qkv(grad=False)
        assert not topk_attention(query, key, value, k=2).requires_grad
        key.requires_grad_()
        topk_attention(query, key, value, k=2).sum().backward()
        assert query.grad is None
        assert value.grad is None
        assert key.grad is not None

    def test_a_mask_function_is_called_with_numpy_arrays(self) -> None:
        tensors = qkv(6, 6)
        kinds: list[type] = []

        def causal(queries: Any, keys: Any) -> Any:
            kinds.append(type(queries))
            return keys <= queries

        out = topk_attention(*tensors, k=2, mask=causal)
        torch.testing.assert_close(out, topk_attention(*tensors, k=2, is_causal=True))
        assert set(kinds) == {np.ndarray}


class TestAutograd:
    def test_a_graph_that_is_retained_can_be_walked_twice(self) -> None:
        query, key, value = qkv()
        loss = topk_attention(query, key, value, k=2).sum()
        loss.backward(retain_graph=True)
        once = query.grad.clone()
        loss.backward()
        torch.testing.assert_close(query.grad, 2 * once)

    def test_a_tensor_written_to_before_the_backward_pass_is_an_error(self) -> None:
        query, key, value = qkv()
        out = topk_attention(query, key, value, k=2)
        with torch.no_grad():
            key.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()

    def test_second_derivatives_are_an_error(self) -> None:
        query, key, value = qkv()
        (grad,) = torch.autograd.grad(
            topk_attention(query, key, value, k=2).sum(), query, create_graph=True
        )
        with pytest.raises(RuntimeError, match="differentiated twice"):
            (grad + query).sum().backward()

    @pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # PyTorch asks for it
    def test_what_is_compiled_around_a_call_gives_the_same_gradients(self) -> None:
        def loss(query: Any, key: Any, value: Any) -> Any:
            return (topk_attention(2 * query, key, value, k=2) + 1).square().sum()

        tensors = qkv()
        compiled = torch.compile(loss, backend="eager")
        found = torch.autograd.grad(compiled(*tensors), tensors)
        torch.testing.assert_close(found, torch.autograd.grad(loss(*tensors), tensors))

    def test_torch_func_gives_the_same_gradients(self) -> None:
        query, key, value = qkv()
        loss = topk_attention(query, key, value, k=2).square().sum()
        expected = torch.autograd.grad(loss, key)[0]
        found = torch.func.grad(
            lambda key: topk_attention(query.detach(), key, value.detach(), k=2).square().sum()
        )(key.detach())
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("length", [6, 4096])
def test_selection_holds_where_subnormal_numbers_count_as_zero(length: int) -> None:
    scores = np.zeros((2, length))
    scores[:, 1] = -1
    # A setting of x86 processors with SSE3 and of ARM's: elsewhere nobody can make it, PyTorch says
    # so here, and there is nothing to hold.
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        assert topk_np.top_k(scores, 3).indices.tolist() == [[0, 2, 3]] * 2
    finally:
        torch.set_flush_denormal(False)


class TestErrors:
    def test_of_arguments_are_those_of_the_function(self) -> None:
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            topk_attention(*qkv(), k=0)

    def test_numpy_arrays_are_refused(self) -> None:
        query, key, value = qkv(grad=False)
        with pytest.raises(TypeError, match=r"expected tensors, got a NumPy array of shape \(2, 6"):
            topk_attention(query, key, value.numpy(), k=1)

    def test_a_call_without_tensors_is_refused(self) -> None:
        with pytest.raises(TypeError, match="at least one tensor"):
            topk_attention(k=1)

    def test_tensors_on_two_devices_are_refused(self) -> None:
        query, key, value = qkv(grad=False)
        with pytest.raises(TypeError, match="one device, got cpu and meta"):
            topk_attention(query, key.to("meta"), value, k=1)

    def test_a_gradient_that_does_not_exist_is_an_error_not_zero(self) -> None:
        def fwd(x: Any, *, factor: Any) -> Any:
            return x * factor, factor

        double = as_torch(fwd, lambda factor, dout: (dout * factor,))
        out = double(normal(3), factor=normal(3, seed=1))
        with pytest.raises(TypeError, match=r"no gradient for tensor 1 .* \(3,\)"):
            out.sum().backward()

    def test_an_output_that_is_no_array_is_an_error(self) -> None:
        pair = as_torch(lambda x: ([x], None), lambda residuals, dout: dout)
        with pytest.raises(TypeError, match=r"must be an array .* got .*list"):
            pair(normal(3))

    def test_what_cannot_be_called_is_refused(self) -> None:
        with pytest.raises(TypeError, match="bwd must be callable, got int"):
            as_torch(topk_np.topk_ffn_fwd, 3)  # type: ignore[arg-type]


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(topk_np.interop.torch)
    assert result.attempted > 0
    assert result.failed == 0
