"""FlexAttention: its block tables say what is causal, and on an accelerator it is as exact as PyTorch's attention."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from epilogue.kernels.attention import TILE_TOKENS, attention, flex
from epilogue.model import alibi_slopes
from fresh_process import needs_triton, printed_by
from kernels.attention import block_table_cases
from kernels.attention.exactness import assert_as_exact_as_sdpa, random_inputs

LENGTHS = [
    (1, 1),
    (63, 63),
    (128, 128),
    (129, 129),
    (1000, 1000),
    (300, 1000),
    (257, 513),
    (1, 700),
    (128, 300),
    (130, 256),
    (2, 128),
]
each_length = pytest.mark.parametrize(("queries", "keys"), LENGTHS)
BLOCK = 128


def truth_by_block(queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """For every tile of queries and block of keys: whether any pair is causal, and whether every pair is."""
    rows, columns = -(-queries // BLOCK), -(-keys // BLOCK)
    seen_TS = torch.arange(queries)[:, None] + keys - queries >= torch.arange(keys)
    any_RN, all_RN = torch.zeros(rows, columns, dtype=torch.bool), torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        for column in range(columns):
            pairs = seen_TS[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            any_RN[row, column] = pairs.any()
            all_RN[row, column] = pairs.all() and pairs.shape[1] == BLOCK
    return any_RN, all_RN


def listed(counts_11R: Tensor, indices_11RN: Tensor, width: int) -> Tensor:
    """The blocks a table lists: the first ``count`` indices of every row."""
    table_RN = torch.zeros(counts_11R.shape[-1], width, dtype=torch.bool)
    for row, count in enumerate(counts_11R[0, 0].tolist()):
        listed_here = indices_11RN[0, 0, row, :count].tolist()
        assert len(set(listed_here)) == count, "a block listed twice is counted twice"
        table_RN[row, listed_here] = True
    return table_RN


def blocks(queries: int, keys: int) -> BlockMask:
    mask, first_query = flex._causal_blocks(queries, keys, torch.device("cpu"))
    assert first_query.item() == keys - queries
    return mask


@each_length
def test_blocks_cover_what_is_causal_and_only_that(queries: int, keys: int) -> None:
    mask = blocks(queries, keys)
    any_RN, all_RN = truth_by_block(queries, keys)
    width = any_RN.shape[1]
    partial_RN = listed(mask.kv_num_blocks, mask.kv_indices, width)
    full_RN = listed(mask.full_kv_num_blocks, mask.full_kv_indices, width)
    assert torch.equal(partial_RN | full_RN, any_RN)
    assert not (partial_RN & full_RN).any()
    assert not (full_RN & ~all_RN).any(), "a full block is not masked, so all of it must be causal"
    assert partial_RN.sum(1).max() <= 2, "only blocks on the diagonal need a mask"
    assert torch.equal(mask.to_dense()[0, 0].bool(), any_RN)


@needs_triton
def test_the_interpreted_kernel_writes_down_the_same_tables() -> None:
    assert printed_by("kernels.attention.block_table_cases", interpreted=True) == "done\n"


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [None, 1, 32])
def test_the_kernel_on_an_accelerator_writes_down_the_same_tables(heads: int | None) -> None:
    for queries, keys in block_table_cases.LENGTHS:
        block_table_cases.assert_same_tables(queries, keys, heads=heads, device="cuda")


@each_length
def test_blocks_seen_from_the_keys_are_the_same(queries: int, keys: int) -> None:
    """The backward pass walks the transposed tables."""
    mask = blocks(queries, keys)
    height, width = mask.kv_num_blocks.shape[-1], mask.q_num_blocks.shape[-1]
    for side in ("", "full_"):
        by_query = listed(getattr(mask, f"{side}kv_num_blocks"), getattr(mask, f"{side}kv_indices"), width)
        by_key = listed(getattr(mask, f"{side}q_num_blocks"), getattr(mask, f"{side}q_indices"), height)
        assert torch.equal(by_query, by_key.T)


@each_length
def test_reading_takes_the_same_blocks_without_the_way_back(queries: int, keys: int) -> None:
    plan_HN = torch.zeros(3, -(-queries // TILE_TOKENS), dtype=torch.int64)
    for plan in (None, plan_HN):
        whole, reading = (
            flex._blocks(queries, keys, torch.device("cpu"), plan, for_backward=for_backward)[0]
            for for_backward in (True, False)
        )
        assert reading.q_indices is None
        assert reading.full_q_indices is None
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
            assert torch.equal(getattr(whole, name), getattr(reading, name))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_way_back_is_known_wherever_a_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[BlockMask] = []

    def remembered(*args: Tensor, **kwargs: Any) -> Tensor:
        masks.append(kwargs["block_mask"])
        return args[0]

    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda dynamic: remembered)
    for place in (0, 1, 2, None):
        inputs = random_inputs(130, 300, heads=3, dtype=torch.float64)
        if place is not None:
            inputs[place].requires_grad_()
        attention(*inputs, alibi_slopes(3), scale=0.25, backend="flex")
        assert (masks[-1].q_indices is not None) == (place is not None)


@each_length
def test_the_mask_inside_a_block_is_causal(queries: int, keys: int) -> None:
    q_idx, kv_idx = torch.arange(queries)[:, None], torch.arange(keys)
    zero = torch.zeros((), dtype=torch.int64)
    seen_TS = blocks(queries, keys).mask_mod(zero, zero, q_idx, kv_idx)
    assert torch.equal(seen_TS, torch.ones(queries, keys).tril(keys - queries).bool())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (63, 63), (130, 300), (1, 400)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)])
def test_the_bias_is_alibi(queries: int, keys: int, heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PyTorch's eager form of the same call, which needs no accelerator."""
    monkeypatch.setattr(flex, "_compiled_flex_attention", lambda dynamic: flex_attention)
    inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, dtype=torch.float64)
    ours, truth = (
        attention(*inputs, alibi_slopes(heads), scale=0.25, backend=backend) for backend in ("flex", "reference")
    )
    # FlexAttention's eager form takes its bias in fp32.
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "kv_heads", "head_dim", "dtype"),
    [
        (17, 17, 5, 1, 16, torch.bfloat16),
        (63, 63, 3, 3, 64, torch.float32),
        (257, 513, 3, 3, 64, torch.bfloat16),
        (300, 1000, 8, 2, 128, torch.bfloat16),
        (1000, 1000, 3, 3, 64, torch.float16),
        (1000, 1000, 12, 12, 64, torch.float32),
    ],
)
def test_on_an_accelerator(
    queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    torch.compiler.reset()  # past a number of shapes PyTorch would run the eager form instead
    inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, head_dim=head_dim, batch=2, dtype=dtype)
    on_device = [x.cuda() for x in inputs]
    assert_as_exact_as_sdpa(on_device, alibi_slopes(heads).cuda(), backend="flex")


@pytest.mark.gpu
def test_a_book_in_chunks_of_many_lengths_stays_fused() -> None:
    """Every chunk has another number of keys; PyTorch gives up compiling after a few variants unless told not to."""
    torch.compiler.reset()
    q, k, v = (x.cuda() for x in random_inputs(65_536, 65_536, heads=2, head_dim=64, dtype=torch.bfloat16))
    slopes = alibi_slopes(2).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for stop in [*range(2_000, 65_536, 3_001), 65_536]:
        attention(q[:, stop - 2_000 : stop], k[:, :stop], v[:, :stop], slopes, scale=0.125)
    scores_bytes = 2 * 2_000 * 65_536 * 4
    assert torch.cuda.max_memory_allocated() - before < scores_bytes // 4


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_schedule_of_many_lengths_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine shapes and more once fell back to FlexAttention's eager form, which holds all scores of a window."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        compiled.append(graph)
        return graph.forward

    real_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: real_compile(function, backend=backend, **how))
    flex._compiled_flex_attention.cache_clear()
    attend = flex._compiled_flex_attention(dynamic=False)
    flex._compiled_flex_attention.cache_clear()
    for tokens in range(1, 12):
        x_BHTD = torch.randn(1, 2, tokens, 16)
        attend(x_BHTD, x_BHTD, x_BHTD, block_mask=flex._causal_blocks(tokens, tokens, torch.device("cpu"))[0])
    assert len(compiled) == 11
