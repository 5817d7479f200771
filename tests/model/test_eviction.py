"""Pages given back: no later query misses more than epsilon of its probability, and no more pages are held."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage, dequantize, quantize
from epilogue.model import (
    MPT,
    AttentionConfig,
    EvictionBounds,
    KVCache,
    MPTConfig,
    PageTable,
    Segment,
    evictable_from,
    eviction_bounds,
)
from model.paged import Paged

EPSILON = 1e-4
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"no_bias": False},
    "rmsnorm": {"norm_type": "rmsnorm"},
    "grouped": {"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}},
    "large clip": {"attn_config": {"clip_qkv": 2.0}},
    "small clip": {"attn_config": {"clip_qkv": 0.5}},
    "qk_ln": {"attn_config": {"qk_ln": True}},
    "qk_gn and biases": {"no_bias": False, "attn_config": {"qk_gn": True}},
    "negative scale": {"attn_config": {"softmax_scale": -0.5}},
}


def evictable(table: PageTable, bounds: EvictionBounds, slopes_H: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """count_LK: pages that may go now."""
    return (evictable_from(table, bounds, slopes_H, epsilon=epsilon) <= table.num_tokens).sum(dim=2)


def model_of(*, attn_config: dict[str, Any] | None = None, bias_max: float = 3, **changes: Any) -> MPT:
    settings: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 31, "no_bias": True}
    attention = AttentionConfig(**{"alibi": True, "alibi_bias_max": bias_max} | (attn_config or {}))
    model = MPT(MPTConfig(**settings | changes, attn_config=attention)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=float(parameter.ndim == 1 and "bias" not in name), std=0.3)
    return model


class Reader:
    """Reads chunk by chunk, gives back what may be, and remembers every query, key and edge."""

    def __init__(self, model: MPT, num_tokens: int, *, storage: Storage = "float32", epsilon: float = EPSILON) -> None:
        self.model, self.storage, self.epsilon = model, storage, epsilon
        self.bounds = eviction_bounds(model, storage)
        self.cache = Paged(model.config, capacity_tokens=num_tokens, storage=storage, epsilon=epsilon)
        layers = range(model.config.n_layers)
        self.queries: list[list[Tensor]] = [[] for _ in layers]
        self.keys: list[list[Tensor]] = [[] for _ in layers]
        self.edges: list[list[Tensor]] = [[] for _ in layers]
        self.most_held = torch.zeros(1)
        table = self.cache.tables[0]

        class Remembering(KVCache):
            def attend(cache, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                self.queries[layer].append(q_BTHD[0])
                self.keys[layer].append(dequantize(quantize(k_BTKD[0], storage), dtype=torch.float32).double())
                self.edges[layer].append((table.first_live_LK[layer] * PAGE_TOKENS).expand(q_BTHD.shape[1], -1))
                return super().attend(layer, q_BTHD, k_BTKD, *args, **kwargs)

        self.kind_of_cache = Remembering

    @torch.inference_mode()
    def read(self, ids_T: Tensor) -> Tensor:
        """logits_TV."""
        table = self.cache.tables[0]
        segment = Segment(table, len(ids_T), self.cache.reads)
        there_LK = ((table.ids_LKP >= 0) & (torch.arange(table.ids_LKP.shape[2]) * PAGE_TOKENS < segment.stop)).sum(2)
        self.most_held = torch.maximum(self.most_held, there_LK)
        cache = self.kind_of_cache(self.cache.pool, [segment], epsilon=self.epsilon, bounds=self.bounds)
        logits_TV = self.model(ids_T[None], cache)[0]
        table.num_tokens = segment.stop
        count_LK = evictable(table, self.bounds, self.model.slopes_H, epsilon=self.epsilon)
        table.ids_LKP[torch.arange(table.ids_LKP.shape[2]) < count_LK[..., None]] = -1
        return logits_TV

    def missed_LHT(self) -> Tensor:
        """In fp64 and dense: the probability of every query on keys that were gone."""
        config, slopes_H = self.model.config, self.model.slopes_H.double()
        group = config.n_heads // config.kv_n_heads
        layers = []
        for queries, keys, edges in zip(self.queries, self.keys, self.edges, strict=True):
            q_THD, k_TKD, edge_TK = torch.cat(queries), torch.cat(keys), torch.cat(edges)
            k_THD = k_TKD.repeat_interleave(group, dim=1)
            place = torch.arange(len(q_THD))
            distance = place[:, None] - place
            scores = (
                torch.einsum("thd,shd->hts", q_THD, k_THD) * config.softmax_scale - slopes_H[:, None, None] * distance
            )
            weights_HTS = scores.masked_fill(distance < 0, -math.inf).softmax(-1)
            edge_HT1 = edge_TK.T.repeat_interleave(group, dim=0)[..., None]
            layers.append((weights_HTS * (place < edge_HT1)).sum(-1))
        return torch.stack(layers)


def story(num_tokens: int) -> Tensor:
    """Drawn tokens, long repetitions, and one token for ever."""
    drawn = torch.randint(0, 31, (num_tokens,))
    drawn[200:400], drawn[500:700] = 3, torch.arange(200) % 2
    return drawn


CHUNKS = [1, 300, 200, 128, 1, 60, 16, 200]


@pytest.mark.parametrize("kind", KINDS)
def test_no_query_misses_more_than_epsilon(kind: str) -> None:
    torch.manual_seed(len(kind))
    model, ids = model_of(**KINDS[kind]), story(sum(CHUNKS))
    reader, whole = Reader(model, len(ids)), Reader(model, len(ids), epsilon=0)
    logits, truth = (torch.cat([r.read(chunk) for chunk in ids.split(CHUNKS)]) for r in (reader, whole))
    table = reader.cache.tables[0]
    assert (table.first_live_LK > 0).any(), "something was meant to be given back"
    assert not whole.cache.tables[0].first_live_LK.any()
    assert reader.missed_LHT().max() <= EPSILON
    assert reader.missed_LHT().max() <= reader.cache.reads.omitted_mass <= EPSILON
    # The order of what is left out: a layer moves its output by at most 2 epsilon of its largest value.
    assert (logits - truth).abs().max() <= 20 * EPSILON * truth.abs().max()
    kv_heads = table.ids_LKP.shape[1]
    most_LK = reader.bounds.most_pages(
        model.slopes_H, len(ids), epsilon=EPSILON, kv_heads=kv_heads, chunk_tokens=max(CHUNKS)
    )
    assert (reader.most_held <= most_LK).all()
    assert (most_LK <= -(-len(ids) // PAGE_TOKENS)).all()


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["plain", "large clip"])
def test_nor_in_a_narrower_storage(kind: str, storage: Storage) -> None:
    model, ids = model_of(bias_max=1, **KINDS[kind]), story(sum(CHUNKS))
    reader = Reader(model, len(ids), storage=storage)
    for chunk in ids.split(CHUNKS):
        reader.read(chunk)
    assert (reader.cache.tables[0].first_live_LK > 0).any(), "something was meant to be given back"
    assert reader.missed_LHT().max() <= EPSILON


def made_up(*, floor: float, largest: float, score: float, heads: int = 1) -> tuple[EvictionBounds, PageTable]:
    """Bounds of one layer, and a table of ten full pages whose keys all have one score."""
    config = MPTConfig(d_model=2 * heads, n_heads=heads, n_layers=1, vocab_size=3)
    table = PageTable.empty(config, capacity_tokens=10 * PAGE_TOKENS)
    table.num_tokens, table.scores_LHP[...] = 10 * PAGE_TOKENS, score
    table.ids_LKP[...] = 0
    one = torch.ones(1, heads, dtype=torch.float64)
    return EvictionBounds(
        torch.zeros(1, heads, 2, 2), torch.zeros(1, heads, 2), one, math.inf, floor * one, largest * one
    ), table


@pytest.mark.parametrize("slope", [0.9, 0.1, 0.01, 1e-4, 0.0])
@pytest.mark.parametrize(("score", "floor"), [(0.0, 0.0), (5.0, -5.0), (40.0, -40.0), (300.0, -300.0)])
def test_the_worst_case_itself_stays_below_epsilon_and_one_page_more_would_not(
    slope: float, score: float, floor: float
) -> None:
    """A next query that gives every key the largest score and its own the least, and every other key nothing."""
    bounds, table = made_up(floor=floor, largest=score, score=score)
    count = int(evictable(table, bounds, torch.tensor([slope])))

    def missed(pages: int) -> float:
        distance = table.num_tokens - torch.arange(pages * PAGE_TOKENS, dtype=torch.float64)
        return float(torch.logsumexp(score - slope * distance - floor, 0).exp()) if pages else 0.0

    assert missed(count) <= EPSILON
    if count < 9:
        assert missed(count + 1) > EPSILON * 0.9
    most = int(bounds.most_pages(torch.tensor([slope]), table.num_tokens, epsilon=EPSILON, kv_heads=1, chunk_tokens=1))
    assert 10 - count <= most


def test_the_largest_score_of_all_older_keys_counts() -> None:
    """Scores that rise into the past as fast as the distance takes from them: every page weighs as much."""
    bounds, table = made_up(floor=0, largest=100, score=0)
    older_P = torch.arange(10).flip(0)
    table.scores_LHP[...] = 0.01 * PAGE_TOKENS * older_P - 13.85
    count = int(evictable(table, bounds, torch.tensor([0.01])))
    distance = table.num_tokens - torch.arange(table.num_tokens, dtype=torch.float64)
    scores = table.scores_LHP[0, 0].double().repeat_interleave(PAGE_TOKENS)
    missed = (scores - 0.01 * distance)[: count * PAGE_TOKENS].exp().sum()
    assert missed <= EPSILON


def test_a_score_that_is_no_number_keeps_its_page_and_all_behind() -> None:
    bounds, table = made_up(floor=0, largest=1, score=0)
    slopes_H = torch.tensor([0.5])
    assert int(evictable(table, bounds, slopes_H)) == 9
    table.scores_LHP[0, 0, 4] = math.nan
    assert int(evictable(table, bounds, slopes_H)) == 4


def test_the_newest_page_stays_and_epsilon_0_keeps_all() -> None:
    bounds, table = made_up(floor=1e6, largest=1, score=0)
    slopes_H = torch.tensor([0.5])
    assert int(evictable(table, bounds, slopes_H)) == 9
    from_P = evictable_from(table, bounds, slopes_H, epsilon=EPSILON)[0, 0]
    assert from_P.tolist() == [PAGE_TOKENS * page + 1 for page in range(1, 11)]
    assert int(evictable(table, bounds, slopes_H, epsilon=0)) == 0
    assert int(bounds.most_pages(slopes_H, 1280, epsilon=0, kv_heads=1, chunk_tokens=1)) == 10
