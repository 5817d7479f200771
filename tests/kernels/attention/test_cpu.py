"""The CPU backend is as exact as PyTorch's fused attention under a materialised mask, and stores no such mask."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from epilogue.kernels.attention import attention
from epilogue.model import alibi_slopes
from kernels.attention.exactness import (
    assert_as_exact_as_sdpa,
    assert_within_twice_the_error,
    random_inputs,
    sdpa,
    with_gradients,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@each_dtype
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (63, 63), (1000, 1000), (300, 1000), (1, 700), (257, 513), (256, 512)]
)
def test_lengths(queries: int, keys: int, dtype: torch.dtype) -> None:
    assert_as_exact_as_sdpa(random_inputs(queries, keys, batch=2, dtype=dtype))


@each_dtype
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(1, 1, 7), (3, 3, 128), (5, 1, 16), (8, 2, 64), (8, 8, 7), (12, 4, 16), (12, 1, 64)],
)
def test_heads_and_their_widths(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    inputs = random_inputs(257, 301, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    assert_as_exact_as_sdpa(inputs)


@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.integers(1, 20),
    queries=st.integers(1, 530),
    older=st.integers(0, 300),
    bias_max=st.floats(1, 20),
    scale=st.floats(-2, 2),
)
@settings(max_examples=25)
def test_any_shape(
    batch: int, kv_heads: int, group: int, head_dim: int, queries: int, older: int, bias_max: float, scale: float
) -> None:
    heads = kv_heads * group
    inputs = random_inputs(
        queries, queries + older, heads=heads, kv_heads=kv_heads, head_dim=head_dim, batch=batch, dtype=torch.float64
    )
    arguments = (inputs, torch.randn_like(inputs[0]), alibi_slopes(heads, bias_max))
    ours, truths = (
        with_gradients(attention, *arguments, scale=scale, backend=backend) for backend in ("cpu", "reference")
    )
    for our, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(our, truth, rtol=1e-10, atol=1e-11)


@each_dtype
def test_keys_and_values_as_the_cache_holds_them(dtype: torch.dtype) -> None:
    q, k, v = random_inputs(300, 1000, heads=4, kv_heads=2, batch=2, dtype=dtype)
    buffer = torch.full((2, 2, 2, 1100, 16), torch.nan, dtype=dtype)
    buffer[..., :1000, :] = torch.stack([k, v]).transpose(2, 3)
    k_view, v_view = (x[:, :, :1000].transpose(1, 2) for x in buffer)
    assert not k_view.is_contiguous()
    assert_as_exact_as_sdpa((q, k_view, v_view))


@each_dtype
def test_queries_keys_and_values_split_from_one_projection(dtype: torch.dtype) -> None:
    fused = torch.randn(2, 300, (6 + 2 + 2) * 16).to(dtype)
    inputs = [x.unflatten(-1, (-1, 16)) for x in fused.split([96, 32, 32], dim=-1)]
    assert not inputs[0].is_contiguous()
    assert_as_exact_as_sdpa(inputs)


@pytest.mark.parametrize("kind", ["expanded", "transposed"])
def test_incoming_gradients_of_any_layout(kind: str) -> None:
    inputs = random_inputs(300, 400)
    grad_out = (
        torch.ones(()).expand(1, 300, 3, 16) if kind == "expanded" else torch.randn(16, 3, 300, 1).permute(3, 2, 1, 0)
    )
    assert_as_exact_as_sdpa(inputs, grad_out=grad_out)


def test_gradients_reach_only_the_inputs_that_want_them() -> None:
    q, k, v = random_inputs(5, 300)
    v.requires_grad_()
    attention(q, k, v, alibi_slopes(3), scale=0.25, backend="cpu").sum().backward()
    assert v.grad is not None
    assert q.grad is None
    assert k.grad is None


def test_a_key_70000_tokens_back_is_heard() -> None:
    """A mask in fp16 would be -inf at this distance, one in bf16 would round it to a multiple of 512."""
    q, k, v = random_inputs(3, 70_000, heads=1)
    k *= 0.1
    k[0, 0, 0], v[0, 0, 0] = 16 * q[0, :, 0].mean(0), 5.0
    slopes = torch.tensor([2.0**-16])
    grad_out = torch.randn_like(q)
    options = {"scale": 1.0}
    truths = with_gradients(
        attention, [x.double() for x in (q, k, v)], grad_out.double(), slopes, backend="reference", **options
    )
    ours = with_gradients(attention, (q, k, v), grad_out, slopes, backend="cpu", **options)
    peers = with_gradients(sdpa, (q, k, v), grad_out, slopes, **options)
    assert (truths[0] - v[:, 1:].mean(1)).abs().max() > 1, "the far key was meant to matter"
    assert_within_twice_the_error(ours, peers, truths)


def test_bf16_inputs_keep_an_fp32_bias() -> None:
    """A slope rounded to bf16 would move the far key's share, about a half, by a fifth."""
    q, k, v = random_inputs(3, 70_000, heads=1)
    q[...], k[0, 0, 0], v[0, 0, 0] = 2.0, 62.0 / 32, 5.0
    k[:, 1:] *= 0.1
    inputs = [x.bfloat16() for x in (q, k, v)]
    slopes = torch.tensor([2.0**-10.3])
    truth = attention(*(x.double() for x in inputs), slopes, scale=1.0, backend="reference")
    assert 1 < truth.mean() < 4, "the far key was meant to share with the near ones"
    out = attention(*inputs, slopes, scale=1.0, backend="cpu")
    assert (out - truth).abs().max() <= torch.finfo(torch.bfloat16).eps * truth.abs().max()


@each_dtype
@pytest.mark.parametrize("bias_max", [1, 8, 16])
def test_slopes_from_steep_to_flat(bias_max: int, dtype: torch.dtype) -> None:
    """Within one tile of queries a steep head's bias spans hundreds; the rounding of that span must not show."""
    assert_as_exact_as_sdpa(random_inputs(512, 700, heads=4, dtype=dtype), alibi_slopes(4, bias_max))


@each_dtype
def test_zero_slopes_are_plain_causal_attention(dtype: torch.dtype) -> None:
    q, k, v = random_inputs(600, 600, dtype=dtype)
    out = attention(q, k, v, torch.zeros(3), scale=0.25, backend="cpu")

    def plain(*inputs: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in inputs)
        return F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.25).transpose(1, 2)

    assert_within_twice_the_error([out], [plain(q, k, v)], [plain(q.double(), k.double(), v.double())])


@each_dtype
def test_huge_scores(dtype: torch.dtype) -> None:
    q, k, v = random_inputs(300, 600, dtype=dtype)
    assert_as_exact_as_sdpa((q * 50, k * 50, v), scale=1.0)


@each_dtype
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_equal_keys(size: float, dtype: torch.dtype) -> None:
    """Larger ones would prove nothing of dq: it is then zero, the difference of sums that are not."""
    q, k, v = random_inputs(300, 600, dtype=dtype)
    assert_as_exact_as_sdpa((q, torch.full_like(k, size), v))


class LargestTensor(TorchDispatchMode):
    """The largest storage any operator returned, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self.backward_was_seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.backward_was_seen |= "backward" in str(func)
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.num_bytes = max(self.num_bytes, *sizes, 0)
        return result


def test_memory_grows_with_the_tokens_not_with_their_square() -> None:
    length, heads, head_dim, tile = 16_384, 2, 4, 256
    inputs = random_inputs(length, length, heads=heads, head_dim=head_dim)
    with LargestTensor() as largest:
        with_gradients(attention, inputs, torch.ones_like(inputs[0]), alibi_slopes(heads), scale=0.5, backend="cpu")
    assert largest.backward_was_seen
    assert largest.num_bytes <= 4 * heads * max(length * head_dim, tile * tile)


def test_shared_keys_are_not_repeated_in_memory() -> None:
    q, k, v = random_inputs(1, 20_000, heads=16, kv_heads=1)
    with LargestTensor() as largest:
        attention(q, k, v, alibi_slopes(16), scale=0.25, backend="cpu")
    assert largest.num_bytes <= k.numel() * k.element_size()
