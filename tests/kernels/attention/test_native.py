"""Attention of many queries in C++: as exact as PyTorch's, on every instruction set, and chosen without gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epilogue.kernels.attention import attention, attention_over_pages, op, reads_pages
from epilogue.kernels.attention.native import attention_native
from epilogue.kernels.paged_attention import Storage, allocate_pages, gather_pages, write_pages
from epilogue.model import alibi_slopes
from kernels.attention.exactness import (
    assert_within_twice_the_error,
    random_documents,
    random_inputs,
    random_plan,
    sdpa,
)
from kernels.native_cases import each_instruction_set, needs_extension

pytestmark = needs_extension
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def assert_as_exact(
    inputs: tuple[Tensor, Tensor, Tensor],
    slopes_H: Tensor | None = None,
    *,
    scale: float | None = None,
    instructions: str = "",
    **view: Tensor | None,
) -> None:
    """At most twice the error of PyTorch's fused attention under a materialised mask."""
    slopes_H = alibi_slopes(inputs[0].shape[2]) if slopes_H is None else slopes_H
    options: dict[str, Any] = {"scale": inputs[0].shape[-1] ** -0.5 if scale is None else scale, **view}
    truth = attention(*(x.double() for x in inputs), slopes_H, backend="reference", **options)
    ours = attention_native(*inputs, slopes_H, instructions=instructions, **options)
    assert ours.dtype == inputs[0].dtype
    assert_within_twice_the_error([ours], [sdpa(*inputs, slopes_H, **options)], [truth])


@each_instruction_set
@each_dtype
@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 700), (17, 17), (63, 63), (257, 513), (300, 1000), (600, 1037)]
)
def test_lengths(queries: int, keys: int, dtype: torch.dtype, instructions: str) -> None:
    assert_as_exact(random_inputs(queries, keys, batch=2, dtype=dtype), instructions=instructions)


@each_instruction_set
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 1), (3, 3, 128), (5, 1, 16), (8, 2, 64), (8, 8, 7), (12, 4, 80)]
)
def test_heads_and_their_widths(heads: int, kv_heads: int, head_dim: int, instructions: str) -> None:
    inputs = random_inputs(130, 301, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    assert_as_exact(inputs, instructions=instructions)


@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.integers(1, 40),
    queries=st.integers(1, 600),
    older=st.integers(0, 700),
    bias_max=st.floats(1, 20),
    scale=st.floats(-1, 1),
    what=st.sampled_from(["", "plan", "documents", "plan, documents"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_any_shape_and_view(
    batch: int, kv_heads: int, group: int, head_dim: int, queries: int, older: int, bias_max: float, scale: float,
    what: str, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    keys, heads = queries + older, kv_heads * group
    inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, head_dim=head_dim, batch=batch)
    view = {
        "first_key_HN": random_plan(queries, keys, heads) if "plan" in what else None,
        "document_start_BT": random_documents(queries, keys, batch, mean_tokens=90.0) if "documents" in what else None,
    }
    assert_as_exact(inputs, alibi_slopes(heads, bias_max), scale=scale, **view)


def test_an_edge_need_not_be_a_pages() -> None:
    edges = torch.tensor([[37, 237, 301], [0, 0, 300], [100, 1, 612]])
    assert_as_exact(random_inputs(600, 700), first_key_HN=edges)


@each_instruction_set
@pytest.mark.parametrize("bias_max", [1, 16])
def test_slopes_from_steep_to_flat(bias_max: int, instructions: str) -> None:
    assert_as_exact(random_inputs(512, 900, heads=4), alibi_slopes(4, bias_max), instructions=instructions)


@each_instruction_set
@pytest.mark.parametrize("size", [5.0, 50.0])
def test_large_scores(size: float, instructions: str) -> None:
    """Of magnitude 30 and more, and of 2,500 and more."""
    q, k, v = random_inputs(100, 600)
    assert_as_exact((q * size, k * size, v), scale=1.0, instructions=instructions)


@each_instruction_set
def test_a_key_70000_tokens_back_is_heard(instructions: str) -> None:
    q, k, v = random_inputs(3, 70_000, heads=1)
    k *= 0.1
    k[0, 0, 0], v[0, 0, 0] = 16 * q[0, :, 0].mean(0), 5.0
    slopes = torch.tensor([2.0**-16])
    out = attention_native(q, k, v, slopes, scale=1.0)
    assert (out - v[:, 1:].mean(1)).abs().max() > 1, "the far key was meant to matter"
    assert_as_exact((q, k, v), slopes, scale=1.0, instructions=instructions)


@each_instruction_set
def test_70000_keys_that_weigh_alike(instructions: str) -> None:
    """The longest sums."""
    q, k, v = random_inputs(2, 70_000, heads=1)
    assert_as_exact((q, torch.zeros_like(k), v.abs()), torch.zeros(1), instructions=instructions)


@each_instruction_set
def test_the_weights_are_powers_of_e(instructions: str) -> None:
    """Two keys, x nats apart, and the lesser one's weight: relative errors from the product x log2(e) and the power."""
    x_B = torch.cat([torch.linspace(-69, 0, 5000), torch.tensor([-70.0, -1000.0])])
    k = torch.stack([x_B, torch.zeros_like(x_B)], dim=1)[..., None, None]
    v = torch.tensor([1.0, 0.0]).expand(len(x_B), 2)[..., None, None]
    q = torch.ones(len(x_B), 1, 1, 1)
    out_B = attention_native(q, k, v, torch.zeros(1), scale=1.0, instructions=instructions).flatten().double()
    weight_B = out_B / (1 - out_B)
    truth_B = x_B.double().exp()
    error_B = (weight_B - truth_B).abs()[:5000] / truth_B[:5000]
    assert (error_B <= (6 + 2 * x_B[:5000].abs()) * 2.0**-24).all()
    assert (weight_B[5000:] == 0).all()


@each_instruction_set
def test_keys_out_of_reach_are_not_read(instructions: str) -> None:
    q, k, v = random_inputs(300, 900)
    k[:, :512], v[:, :512] = torch.nan, torch.nan
    edges = torch.full((3, 2), 512)
    out = attention_native(q, k, v, alibi_slopes(3), scale=0.25, first_key_HN=edges, instructions=instructions)
    assert out.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_is_not_hidden(which: int, value: float) -> None:
    inputs = random_inputs(40, 300)
    inputs[which][0, 3] = value
    out = attention_native(*inputs, torch.zeros(3), scale=0.25)
    assert not out[0, 3 if which == 0 else -1].isfinite().any()


def test_a_query_does_not_depend_on_others_nor_on_threads() -> None:
    """To the bit: as one chunk or several, with pages before the plan's edge there or not."""
    q, k, v = random_inputs(600, 1000, heads=2)
    slopes, edges = alibi_slopes(2), torch.tensor([[256, 256, 384], [128, 384, 512]])
    torch.set_num_threads(2)
    whole = attention_native(q, k, v, slopes, scale=0.25, first_key_HN=edges)
    torch.set_num_threads(1)
    cut = attention_native(
        q[:, 256:], k[:, 128:], v[:, 128:], slopes, scale=0.25, first_key_HN=edges[:, 1:] - 128
    )  # fmt: skip
    assert torch.equal(whole[:, 256:], cut)


@each_instruction_set
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 24), (2, 64), (4, 20)])
def test_keys_that_stay_on_their_pages(storage: Storage, kv_heads: int, head_dim: int, instructions: str) -> None:
    """To the bit as gathered ones, whatever stands on pages that are nobody's and where the plan does not look."""
    q, k, v = random_inputs(300, 1000, heads=4, kv_heads=kv_heads, head_dim=head_dim)
    edges = torch.tensor([[256, 512], [128, 512], [512, 512], [128, 256]])
    ids_KP = 1 + torch.randperm(kv_heads * 8).view(kv_heads, 8)
    pools = [allocate_pages(2 + kv_heads * 8, head_dim, storage) for _ in "kv"]
    for pool, x in zip(pools, (k, v), strict=True):
        for part in (pool.data_PWD, pool.scale_PW, pool.zero_PW):
            if part is not None:
                part.fill_(torch.nan if part.is_floating_point() else 77)
        write_pages(pool, x[0].transpose(0, 1), ids_KP, 0)
    k, v = (gather_pages(pool, ids_KP)[:, :1000].transpose(0, 1)[None] for pool in pools)
    ids_KP[:, 0] = -1
    options = {"scale": 0.25, "first_key_HN": edges}
    assert reads_pages(q[0], pools[0])
    ours = attention_over_pages(
        q[0], *pools, ids_KP, alibi_slopes(4), num_keys=1000, instructions=instructions, **options
    )  # fmt: skip
    if storage == "int4":
        truth = attention(q.double(), k.double(), v.double(), alibi_slopes(4), backend="reference", **options)
        assert_within_twice_the_error([ours[None]], [sdpa(q, k, v, alibi_slopes(4), **options)], [truth])
    else:
        gathered = attention_native(q, k, v, alibi_slopes(4), instructions=instructions, **options)
        assert torch.equal(ours, gathered[0])


def test_bf16_queries_read_bf16_pages_in_place_and_no_codes() -> None:
    """Whose numbers would be fp32."""
    q, k, v = random_inputs(300, 300, heads=2, dtype=torch.bfloat16)
    pages = {storage: allocate_pages(6, q.shape[3], storage) for storage in ("float32", "bfloat16", "int8", "int4")}
    assert [storage for storage, pool in pages.items() if reads_pages(q[0], pool)] == ["bfloat16"]
    pools, ids_KP = [allocate_pages(6, q.shape[3], "bfloat16") for _ in "kv"], torch.arange(6).view(2, 3)
    for pool, x in zip(pools, (k, v), strict=True):
        write_pages(pool, x[0].transpose(0, 1), ids_KP, 0)
    edges = torch.zeros(2, 2, dtype=torch.int64)
    ours = attention_over_pages(
        q[0], *pools, ids_KP, alibi_slopes(2), num_keys=300, scale=0.25, first_key_HN=edges
    )  # fmt: skip
    assert torch.equal(ours, attention_native(q, k, v, alibi_slopes(2), scale=0.25)[0])


def test_numbers_that_lie_anyhow() -> None:
    fused = torch.randn(2, 70, (6 + 2 + 2) * 16)
    q, k, v = (x.unflatten(-1, (-1, 16)) for x in fused.split([96, 32, 32], dim=-1))
    k, v = k.transpose(0, 1).contiguous().transpose(0, 1), v.transpose(2, 3).contiguous().transpose(2, 3)
    assert not any(x.is_contiguous() for x in (q, k, v))
    assert_as_exact((q, k, v))


def test_it_runs_where_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_inputs(40, 100)
    q.requires_grad_()
    assert attention(q, k, v, alibi_slopes(3), scale=0.25).requires_grad
    with torch.no_grad():
        assert op._choose(q, k, v, None) == "cpu", "a pass that is made again for its gradient says so by its queries"
    q = q.detach()
    assert op._choose(q, k, v, None) == "native"
    few = q[:, :16]
    assert op._choose(few, k, v, None) == "cpu"
    assert op._choose(q.double(), k.double(), v.double(), None) == "cpu"
    monkeypatch.setattr("epilogue.kernels.attention.native.native_is_available", lambda: False)
    assert op._choose(q, k, v, None) == "cpu"


def test_a_wrong_call_says_what_is_wrong() -> None:
    inputs = random_inputs(20, 20)
    with pytest.raises(ValueError, match="wanted fp32 or bf16"):
        attention_native(*(x.double() for x in inputs), alibi_slopes(3), scale=1.0)
    with pytest.raises(ValueError, match="no kernels of that name"):
        attention_native(*inputs, alibi_slopes(3), scale=1.0, instructions="abacus")
