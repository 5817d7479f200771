"""Keys and values on pages: any cut, any company and any storage gives what a text alone and whole would."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from epilogue.kernels.attention import Backend
from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage, gather_pages
from epilogue.model import (
    MPT,
    NAMED_SIZES,
    AttentionConfig,
    KVCache,
    MPTConfig,
    PagePool,
    PageTable,
    Quantization,
    Segment,
    eviction_bounds,
    kv_bytes_per_token,
    page_bytes,
    read_flops,
)
from epilogue.model.kv_cache import _within
from epilogue.model.reach import ReachPlan
from model.paged import Paged

CONFIG = MPTConfig(
    d_model=24,
    n_heads=6,
    n_layers=2,
    vocab_size=50,
    no_bias=True,
    attn_config=AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2),
)
CUTS = [0, 1, 17, 18, 120, 130, 131, 300, 310]


def model_in(dtype: torch.dtype) -> MPT:
    model = MPT(CONFIG)
    model.init_weights(std=0.3)
    return model.to(dtype).eval()


def in_chunks(model: MPT, cache: Paged, ids: Tensor) -> Tensor:
    return torch.cat([cache.read(model, ids[:, a:b]) for a, b in pairwise(CUTS)], dim=1)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("storage", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.05), ("int8", 0.05), ("int4", 0.8)]
)
def test_chunks_in_every_storage(storage: Storage, tolerance: float) -> None:
    model, ids = model_in(torch.float64), torch.randint(50, (1, CUTS[-1]))
    truth = model(ids)
    logits = in_chunks(model, Paged(CONFIG, capacity_tokens=310, storage=storage, epsilon=0), ids)
    assert (logits - truth).abs().max() <= tolerance * truth.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_chunk_and_its_tokens_one_by_one_read_the_same_numbers(dtype: torch.dtype, storage: Storage) -> None:
    """Both ways of looking back make numbers of codes in fp32, whatever the dtype of the weights."""
    model, ids = model_in(dtype), torch.randint(50, (1, 140))
    exact = model_in(dtype).double()
    whole, single = (Paged(CONFIG, capacity_tokens=140, storage=storage, epsilon=0) for _ in range(2))
    reference = Paged(CONFIG, capacity_tokens=140, storage=storage, epsilon=0)
    chunk = whole.read(model, ids)
    steps = torch.cat([single.read(model, x) for x in ids.split(1, dim=1)], dim=1)
    truth = reference.read(exact, ids)
    noise = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    noise += {"int8": 0.03, "int4": 0.5}.get(storage, 0.0)  # codes turn where a key stood between two
    for logits in (chunk, steps):
        assert (logits.double() - truth).abs().mean() <= noise * truth.abs().mean()


@torch.inference_mode()
def test_texts_in_one_pass_do_not_touch_one_another() -> None:
    """Many tokens of one, one or a few of others, some as many as others."""
    model = model_in(torch.float64)
    lengths, news = [200, 3, 140, 60, 0, 260], [150, 1, 1, 7, 20, 7]
    texts = [torch.randint(50, (1, a + b)) for a, b in zip(lengths, news, strict=True)]
    pool = PagePool(CONFIG, num_pages=200)
    free, tables = iter(torch.randperm(200).tolist()), []
    for length, text in zip(lengths, texts, strict=True):
        table = PageTable.empty(CONFIG, capacity_tokens=text.shape[1])
        table.ids_LKP.apply_(lambda _: next(free))
        tables.append(table)
        if length:
            model(text[:, :length], KVCache(pool, [Segment(table, length)], epsilon=0))
            table.num_tokens = length
    segments = [Segment(table, new) for table, new in zip(tables, news, strict=True)]
    together = torch.cat([text[:, -new:] for text, new in zip(texts, news, strict=True)], dim=1)
    logits = model(together, KVCache(pool, segments, epsilon=0)).split(news, dim=1)
    for text, part, new in zip(texts, logits, news, strict=True):
        torch.testing.assert_close(part, model(text)[:, -new:], rtol=0, atol=1e-5)


WANTED: list[list[int | None]] = [[1], [0], [None], [1, None, 0], [0, 0, 0], [5, None, 40], [40, 0, 1]]


@torch.inference_mode()
@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("quantized", [False, True])
def test_results_that_nobody_wants_change_no_other(
    wanted: list[int | None], backend: Backend | None, quantized: bool
) -> None:
    """Nor what is on the pages: the rows of a whole pass, and the same text read on behind either."""
    kind = Quantization(bits=4, group_size=8) if quantized else None
    model = MPT(replace(CONFIG, quantization=kind))
    model.init_weights(std=0.3)
    model.set_attention_backend(backend)
    news = [150, 20, 40][: len(wanted)]
    texts = [torch.randint(50, (1, 200 + new + 1)) for new in news]

    def read(wanted: list[int | None]) -> tuple[list[Tensor], list[Tensor]]:
        pool = PagePool(CONFIG, num_pages=60)
        free, tables = iter(range(60)), []
        for text in texts:
            table = PageTable.empty(CONFIG, capacity_tokens=text.shape[1])
            table.ids_LKP.apply_(lambda _: next(free))
            tables.append(table)
        parts: list[list[Tensor]] = []
        for counts, asked in (
            ([200] * len(news), [0] * len(news)),
            (news, wanted),
            ([1] * len(news), [None] * len(news)),
        ):
            cut = [text[:, table.num_tokens :][:, :n] for text, table, n in zip(texts, tables, counts, strict=True)]
            segments = [Segment(t, n, num_wanted=w) for t, n, w in zip(tables, counts, asked, strict=True)]
            logits = model(torch.cat(cut, dim=1), KVCache(pool, segments, bounds=None))
            parts.append(list(logits[0].split([segment.num_results for segment in segments])))
            for table, n in zip(tables, counts, strict=True):
                table.num_tokens += n
        return parts[1], parts[2]

    whole, behind_whole = read([None] * len(news))
    found, behind = read(wanted)
    for count, some, all_TV in zip(wanted, found, whole, strict=True):
        rows = all_TV if count is None else all_TV[len(all_TV) - count :]
        torch.testing.assert_close(some, rows, rtol=1e-4, atol=1e-4)
    for one, other in zip(behind, behind_whole, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_the_last_layer_does_no_more_than_is_wanted() -> None:
    """By PyTorch's count of what it multiplies, which is ours."""
    config = replace(CONFIG, attn_config=AttentionConfig(alibi=True))
    model, cache = MPT(config).double().eval(), Paged(config, capacity_tokens=300, epsilon=0)
    model.set_attention_backend("reference")  # multiplies every query with every key, later ones too
    for wanted, pairs in ((1, 300 * 300 + 300), (None, 2 * 300 * 300)):
        cache.num_tokens = 0
        segment = Segment(cache.tables[0], 300, num_wanted=wanted)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 300, dtype=torch.int64), KVCache(cache.pool, [segment], epsilon=0), last_only=True)
        found = counter.get_total_flops()
        wanted_flops = read_flops(config, 300, visited_pairs=config.n_heads * pairs)
        assert found == wanted_flops if wanted else found > wanted_flops


@torch.inference_mode()
def test_a_page_knows_bounds_of_its_keys() -> None:
    """After any chunks, and after going back into the middle of a page."""
    model, ids = model_in(torch.float64), torch.randint(50, (1, 310))
    bounds, cache = eviction_bounds(model, "int8"), Paged(CONFIG, capacity_tokens=310, storage="int8")
    table = cache.tables[0]
    for start, stop in [*pairwise(CUTS), (200, 204), (128, 300)]:
        table.num_tokens = start
        model(ids[:, start:stop], KVCache(cache.pool, [Segment(table, stop - start)], bounds=bounds))
        table.num_tokens = stop
    for layer in range(2):
        k_KSD = gather_pages(cache.pool.keys, table.ids_LKP[layer])[:, :300]
        scores_HS = bounds.largest_scores(layer, k_KSD)
        for page in range(table.num_pages):
            rows = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
            assert (k_KSD[:, rows].norm(dim=-1).amax(1) <= table.norms_LKP[layer, :, page]).all()
            assert (scores_HS[:, rows].amax(1) <= table.scores_LHP[layer, :, page] * (1 + 1e-6)).all()


def test_what_was_evicted_counts_as_left_out() -> None:
    """Also where a plan of its own would have looked at it."""
    table = PageTable.empty(CONFIG, capacity_tokens=4 * PAGE_TOKENS)
    table.ids_LKP[...], table.num_tokens = 0, 4 * PAGE_TOKENS
    table.ids_LKP[1, 1, 1] = -1  # the page before it is kept for a bookmark
    plan = ReachPlan(
        torch.tensor([[0, 128, 256]]).repeat(6, 1), torch.full((6, 3), 1e-9, dtype=torch.float64), 512, 512
    )
    within = _within(plan, table.first_live_LK[1], 1e-3)
    assert within.first_key_HN[3:].tolist() == [[256, 256, 256]] * 3
    assert within.omitted_mass_HN[3:].tolist() == [[1e-3, 1e-3, 1e-9]] * 3
    assert torch.equal(within.first_key_HN[:3], plan.first_key_HN[:3])
    assert (within.omitted_mass_HN[:3] == 1e-9).all()


def test_a_table_grows_in_few_steps_and_keeps_what_it_has() -> None:
    table = PageTable.empty(CONFIG, capacity_tokens=1)
    table.ids_LKP[...], table.norms_LKP[...], table.scores_LHP[...] = 7, 2.0, 3.0
    widths = set()
    for num_tokens in range(1, 100 * PAGE_TOKENS, 50):
        table.reserve(num_tokens)
        assert table.capacity_tokens >= num_tokens
        widths.add(table.capacity_tokens)
    assert len(widths) < 15
    assert (table.ids_LKP[..., 0] == 7).all()
    assert (table.ids_LKP[..., 1:] == -1).all()
    assert table.norms_LKP.shape == table.ids_LKP.shape == (2, 2, table.capacity_tokens // PAGE_TOKENS)
    assert (table.norms_LKP.sum(), table.scores_LHP.sum()) == (2.0 * 4, 3.0 * 12)


def test_tables_are_told_apart_by_identity() -> None:
    one, twin = (PageTable.empty(CONFIG, capacity_tokens=1) for _ in range(2))
    assert len({one, twin}) == 2
    assert one != twin


def test_copied_pages_are_alike() -> None:
    pool = PagePool(CONFIG, num_pages=6, storage="int4")
    for pages in (pool.keys, pool.values):
        pages.data_PWD.random_(0, 255)
        pages.scale_PW.normal_()
        pages.zero_PW.normal_()
    pool.copy_pages(torch.tensor([0, 1]), torch.tensor([4, 2]))
    for pages in (pool.keys, pool.values):
        for x in (pages.data_PWD, pages.scale_PW, pages.zero_PW):
            assert torch.equal(x[4], x[0])
            assert torch.equal(x[2], x[1])
            assert not torch.equal(x[3], x[0])


def test_storywriter_at_its_length_takes_32_gib_in_bf16() -> None:
    config = NAMED_SIZES["mpt-7b-storywriter"]
    pages = config.n_layers * config.n_heads * 65536 // PAGE_TOKENS
    assert pages * page_bytes(config, "bfloat16") == 32 * 2**30 == 65536 * kv_bytes_per_token(config, torch.bfloat16)
    assert pages * page_bytes(config, "int4") == 32 * 2**30 * (64 + 8) // 256
