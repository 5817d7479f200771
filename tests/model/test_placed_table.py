"""A pass asks nothing of its device, and sends it the same few tables however many layers there are."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from epilogue.kernels.paged_attention import MOST_QUERIES, PAGE_TOKENS
from epilogue.model import MPT, AttentionConfig, KVCache, MPTConfig, PagePool, PageTable, Reads, Segment
from epilogue.model import eviction_bounds as bounds_of
from epilogue.model.placed_table import PlacedTable
from gpu_waits import no_waiting

META = torch.device("meta")


def config(n_layers: int = 2) -> MPTConfig:
    return MPTConfig(
        d_model=32,
        n_heads=4,
        n_layers=n_layers,
        vocab_size=50,
        attn_config=AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2, clip_qkv=2.0),
    )


def a_table(device: torch.device, n_layers: int = 2) -> PageTable:
    """Five pages and a bit, the room of nine, and a hole."""
    table = PageTable.empty(config(n_layers), capacity_tokens=9 * PAGE_TOKENS, device=device)
    table.ids_LKP[..., :7] = torch.arange(n_layers * 2 * 7).view(n_layers, 2, 7)
    table.ids_LKP[:, 1, :3] = -1
    table.num_tokens = 5 * PAGE_TOKENS + 9
    return table


class Sent(TorchDispatchMode):
    """Counts tensors that go from the host to the device, which has no numbers: to ask for one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device == META:
            self.count += any(isinstance(x, Tensor) and x.device != META and x.ndim > 0 for x in args)
        return out


def num_sent(n_layers: int, segments: list[tuple[PageTable, int]], *, num_wanted: int | None = None) -> int:
    """Of the first one, with so many results wanted of it."""
    model = MPT(config(n_layers)).eval()
    bounds = bounds_of(model, "int8")
    on_meta = {x.name: getattr(bounds, x.name) for x in fields(bounds) if isinstance(getattr(bounds, x.name), Tensor)}
    bounds = replace(bounds, **{name: x.to(META) for name, x in on_meta.items()})
    pool = PagePool(model.config, num_pages=200, storage="int8", device=META)
    parts = [Segment(table, num_tokens, Reads.none(4)) for table, num_tokens in segments]
    parts[0] = replace(parts[0], num_wanted=num_wanted)
    ids = torch.zeros(1, sum(num_tokens for _, num_tokens in segments), dtype=torch.int64, device=META)
    model.to(META)
    with torch.inference_mode(), Sent() as sent:
        model.transformer(ids, KVCache(pool, parts, epsilon=1e-3, bounds=bounds))
    return sent.count


@pytest.mark.parametrize("num_tokens", [3, MOST_QUERIES + 1, PAGE_TOKENS + 100])
def test_a_pass_reads_nothing_back_and_sends_no_more_for_more_layers(num_tokens: int) -> None:
    for wanted in (None, 0, 1) if num_tokens > MOST_QUERIES else (None,):
        counts = [
            num_sent(layers, [(a_table(META, layers), num_tokens), (a_table(META, layers), 1)], num_wanted=wanted)
            for layers in (1 if wanted is None else 2, 5)  # one layer alone is the last, which then asks less
        ]
        assert counts[0] == counts[1]


def test_what_is_placed_is_what_the_table_says() -> None:
    table = a_table(torch.device("cpu"))
    stop = table.num_tokens + PAGE_TOKENS
    placed = PlacedTable.of(table, stop, torch.device("cpu"))
    assert torch.equal(placed.ids_LKP, table.ids_LKP[..., :7])
    assert torch.equal(placed.first_live_LK, table.first_live_LK)
    assert placed.first_live_LK.tolist() == [[0, 3]] * 2
    assert placed.oldest_live_L == [0, 0]


def test_a_copy_has_the_shapes_of_a_view() -> None:
    table = a_table(torch.device("cpu"))
    here, there = (PlacedTable.of(table, table.num_tokens + 1, device) for device in (torch.device("cpu"), META))
    for one, other in ((here.ids_LKP, there.ids_LKP), (here.first_live_LK, there.first_live_LK)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert here.oldest_live_L == there.oldest_live_L


@pytest.mark.gpu
def test_a_copy_is_the_same() -> None:
    device = torch.device("cuda")
    table = a_table(device)
    stop = table.num_tokens + PAGE_TOKENS
    here = PlacedTable.of(table, stop, torch.device("cpu"))
    with no_waiting():
        there = PlacedTable.of(table, stop, device)
    assert torch.equal(here.ids_LKP, there.ids_LKP.cpu())
    assert torch.equal(here.first_live_LK, there.first_live_LK.cpu())
