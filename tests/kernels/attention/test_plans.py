"""A plan moves the left edge of the past, for every backend alike; a document's start does so for each query."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from epilogue.kernels.attention import attention, flex
from epilogue.model import alibi_slopes
from kernels.attention.exactness import (
    assert_as_exact_as_sdpa,
    random_documents,
    random_inputs,
    random_plan,
    visible,
    with_gradients,
)

BLOCK = 128
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def random_view(queries: int, keys: int, heads: int, batch: int, what: str) -> dict[str, Tensor | None]:
    """A plan, documents, or both."""
    mean_tokens = {"one": 1.0, "short": 40.0}.get(what.split()[-1], 300.0)
    return {
        "first_key_HN": random_plan(queries, keys, heads) if "plan" in what else None,
        "document_start_BT": random_documents(queries, keys, batch, mean_tokens=mean_tokens)
        if "documents" in what
        else None,
    }


VIEWS = ["plan", "documents", "plan, documents", "plan, documents short", "documents one"]
each_view = pytest.mark.parametrize("what", VIEWS)


@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    queries=st.integers(1, 530),
    older=st.integers(0, 700),
    what=st.sampled_from(VIEWS),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40)
def test_the_cpu_sees_what_the_reference_sees(
    batch: int, kv_heads: int, group: int, queries: int, older: int, what: str, seed: int
) -> None:
    torch.manual_seed(seed)
    keys, heads = queries + older, kv_heads * group
    inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, head_dim=5, batch=batch, dtype=torch.float64)
    options: dict[str, Any] = {"scale": 0.5, **random_view(queries, keys, heads, batch, what)}
    arguments = (inputs, torch.randn_like(inputs[0]), alibi_slopes(heads))
    ours, truths = (
        with_gradients(attention, *arguments, backend=backend, **options) for backend in ("cpu", "reference")
    )
    for our, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(our, truth, rtol=1e-10, atol=1e-11)


@each_dtype
@each_view
@pytest.mark.parametrize(("queries", "keys"), [(1, 700), (63, 63), (257, 513), (600, 1037)])
def test_the_cpu_is_as_exact_as_pytorch(queries: int, keys: int, what: str, dtype: torch.dtype) -> None:
    inputs = random_inputs(queries, keys, heads=6, kv_heads=2, batch=2, dtype=dtype)
    assert_as_exact_as_sdpa(inputs, **random_view(queries, keys, 6, 2, what))


def test_an_edge_need_not_be_a_pages_for_the_cpu() -> None:
    edges = torch.tensor([[37, 237, 301], [0, 0, 300], [100, 1, 612]])
    assert_as_exact_as_sdpa(random_inputs(600, 700), first_key_HN=edges)


def test_keys_out_of_reach_are_not_read() -> None:
    """They may be evicted: NaN here, which a weight of zero would not hide."""
    q, k, v = random_inputs(300, 900)
    k[:, :512], v[:, :512] = torch.nan, torch.nan
    edges = torch.full((3, 2), 512)
    for out in with_gradients(
        attention, (q, k, v), torch.ones_like(q), alibi_slopes(3), scale=0.25, first_key_HN=edges, backend="cpu"
    )[:2]:
        assert out.isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("lengths", [[300], [1, 1, 1], [256, 256], [63, 400, 130, 7], [500, 1, 99]])
def test_packed_documents_are_separate_runs(lengths: list[int], backend: Any) -> None:
    """With a plan they are as near as its certificate says: tests/model/test_reach.py."""
    total = sum(lengths)
    inputs = random_inputs(total, total, heads=4, kv_heads=2, batch=2, dtype=torch.float64)
    grad_out, slopes = torch.randn_like(inputs[0]), alibi_slopes(4)
    cuts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    starts = torch.cat([torch.full((2, b - a), a) for a, b in pairwise(cuts)], dim=1)
    packed = with_gradients(attention, inputs, grad_out, slopes, scale=0.5, document_start_BT=starts, backend=backend)
    apart = [
        with_gradients(attention, [x[:, a:b] for x in inputs], grad_out[:, a:b], slopes, scale=0.5, backend=backend)
        for a, b in pairwise(cuts)
    ]
    for ours, *parts in zip(packed, *apart, strict=True):
        torch.testing.assert_close(ours, torch.cat(parts, dim=1), rtol=1e-10, atol=1e-12)


def test_a_document_is_blind_to_the_one_before() -> None:
    """NaN there does not come through, not even in the gradients."""
    inputs = random_inputs(600, 600)
    for x in inputs:
        x[:, :256] = torch.nan
    starts = torch.where(torch.arange(600) < 256, 0, 256)[None]
    for x in with_gradients(
        attention, inputs, torch.ones_like(inputs[0]), alibi_slopes(3), scale=0.25, document_start_BT=starts
    ):
        assert x[:, 256:].isfinite().all()


def dense_blocks(is_seen_BHTS: Tensor) -> Tensor:
    """Whether any pair of a block is seen."""
    rows, columns = (-(-size // BLOCK) for size in is_seen_BHTS.shape[2:])
    padded = torch.zeros(*is_seen_BHTS.shape[:2], rows * BLOCK, columns * BLOCK, dtype=torch.bool)
    padded[:, :, : is_seen_BHTS.shape[2], : is_seen_BHTS.shape[3]] = is_seen_BHTS
    return padded.unflatten(3, (columns, BLOCK)).unflatten(2, (rows, BLOCK)).any(dim=5).any(dim=3)


def pairs_visited(mask: BlockMask, queries: int, keys: int) -> tuple[Tensor, int]:
    """By the tables and the mask: how often each pair is visited, [B, H, T, S]; and how many full blocks there are."""
    batch, heads, rows = mask.kv_num_blocks.shape
    count = torch.zeros(batch, heads, rows * BLOCK, -(-keys // BLOCK) * BLOCK, dtype=torch.int64)
    q_idx, kv_idx = torch.arange(queries)[:, None], torch.arange(keys)
    num_full = 0
    for b in range(batch):
        is_masked = torch.zeros(count.shape[2:], dtype=torch.int64)
        is_masked[:queries, :keys] = mask.mask_mod(torch.tensor(b), torch.tensor(0), q_idx, kv_idx)
        for h in range(heads):
            for r in range(rows):
                row = slice(r * BLOCK, (r + 1) * BLOCK)
                for j in mask.kv_indices[b, h, r, : mask.kv_num_blocks[b, h, r]].tolist():
                    column = slice(j * BLOCK, (j + 1) * BLOCK)
                    count[b, h, row, column] += is_masked[row, column]
                for j in mask.full_kv_indices[b, h, r, : mask.full_kv_num_blocks[b, h, r]].tolist():
                    count[b, h, row, j * BLOCK : (j + 1) * BLOCK] += 1
                    num_full += 1
    return count[:, :, :queries, :keys], num_full


SHAPES = [(1, 1), (63, 63), (1, 700), (257, 513), (130, 300), (600, 1037), (1000, 1000)]


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
@each_view
def test_flex_tables_say_what_is_seen(queries: int, keys: int, what: str) -> None:
    view = random_view(queries, keys, 3, 2, what)
    mask, first_query = flex._blocks(queries, keys, torch.device("cpu"), **view)
    is_seen = visible(queries, keys, **view)
    assert first_query.item() == keys - queries
    assert torch.equal(mask.to_dense().bool(), dense_blocks(is_seen)), "a block is visited if and only if it is seen"
    visits, num_full = pairs_visited(mask, queries, keys)
    assert torch.equal(visits, is_seen.long()), "each pair once"
    if queries >= 600 and "short" not in what and "one" not in what:
        assert num_full > 0, "what needs no mask is meant to have none"


@pytest.mark.parametrize(("queries", "keys"), [(257, 513), (600, 1037)])
@each_view
def test_flex_tables_seen_from_the_keys_are_the_same(queries: int, keys: int, what: str) -> None:
    """The backward pass walks the transposed tables."""
    mask, _ = flex._blocks(queries, keys, torch.device("cpu"), **random_view(queries, keys, 3, 2, what))
    for side in ("", "full_"):
        by_query, by_key = (
            listed(getattr(mask, f"{side}{name}_num_blocks"), getattr(mask, f"{side}{name}_indices"))
            for name in ("kv", "q")
        )
        assert by_query == {(b, h, column, row) for b, h, row, column in by_key}


def listed(counts_BHR: Tensor, indices_BHRN: Tensor) -> set[tuple[int, ...]]:
    """(sequence, head, row, column) of every block in a table."""
    is_listed = torch.arange(indices_BHRN.shape[3]) < counts_BHR[..., None]
    places = is_listed.nonzero()
    return {
        (*place[:3], column) for place, column in zip(places.tolist(), indices_BHRN[is_listed].tolist(), strict=True)
    }


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("queries", "keys"), [(63, 63), (130, 300), (1, 400)])
@each_view
def test_flex_sees_what_the_reference_sees(queries: int, keys: int, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's eager form, which asks the mask alone, so without the plan: that is in the tables only."""
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda dynamic: flex_attention)
    inputs = random_inputs(queries, keys, heads=6, kv_heads=2, batch=2, dtype=torch.float64)
    view = random_view(queries, keys, 6, 2, what.removeprefix("plan, ")) | {"first_key_HN": None}
    ours, truth = (
        attention(*inputs, alibi_slopes(6), scale=0.25, backend=backend, **view) for backend in ("flex", "reference")
    )
    # FlexAttention's eager form takes its bias in fp32.
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "kv_heads", "head_dim", "dtype"),
    [
        (17, 17, 5, 1, 16, torch.bfloat16),
        (257, 513, 3, 3, 64, torch.bfloat16),
        (600, 1037, 8, 2, 128, torch.bfloat16),
        (1000, 1000, 12, 12, 64, torch.float32),
    ],
)
@each_view
def test_flex_on_an_accelerator(
    queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, what: str
) -> None:
    torch.compiler.reset()  # past a number of shapes PyTorch would run the eager form instead
    inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, head_dim=head_dim, batch=2, dtype=dtype)
    view = {name: None if x is None else x.cuda() for name, x in random_view(queries, keys, heads, 2, what).items()}
    assert_as_exact_as_sdpa([x.cuda() for x in inputs], alibi_slopes(heads).cuda(), backend="flex", **view)
