"""A chunk's bounds by kernels and by operators, on a GPU or in Triton's interpreter: run by test_chunk_bounds.py."""

import itertools
import math
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from epilogue.kernels.paged_attention import PAGE_TOKENS, chunk, largest_of_pages, tile_exponents, tile_prefixes
from epilogue.model import (
    MPT,
    AttentionConfig,
    KVCache,
    MPTConfig,
    Segment,
    alibi_slopes,
    eviction,
    eviction_bounds,
    reach,
)
from epilogue.model.eviction import EvictionBounds
from epilogue.model.reach import _LEAST, TILE_TOKENS, _exponents, _longest_prefixes, _rounding
from model.paged import Paged

SHAPES = [(1, 1, 16, 1), (4, 2, 24, 257), (3, 3, 128, 300), (2, 1, 7, 130)]
"""Heads, heads of keys, their width, and tokens."""
BAD = [0.0, math.nan, math.inf, -math.inf]


def compare_exponents(shape: tuple[int, int, int, int], dtype: torch.dtype, bad: float, device: str) -> None:
    """The same numbers, and on the safe side of the true ones."""
    heads, kv_heads, head_dim, num_tokens = shape
    q_THD = torch.randn(num_tokens, 2, heads, head_dim).to(dtype)[:, 1]  # part of a projection
    k_KTD = torch.randn(kv_heads, num_tokens, head_dim) * torch.logspace(-30, 2, head_dim)
    if bad:
        q_THD[-1, 0, 0] = bad
    slopes_H, largest_HP = alibi_slopes(heads, 8).double(), 5 + torch.rand(heads, 3).double().cummax(dim=1).values
    k_TKD, scale = k_KTD.transpose(0, 1), -0.3
    wanted, most_H = _exponents(q_THD[None], k_TKD[None], largest_HP, slopes_H, scale=scale), largest_HP[:, -1]
    got = tile_exponents(
        *(x.to(device) for x in (q_THD, k_TKD, slopes_H, most_H)), scale=scale, tile_tokens=TILE_TOKENS,
        rounding=_rounding(head_dim), least=math.sqrt(head_dim) * _LEAST,
    )  # fmt: skip
    q_HTD, k_HTD = q_THD.transpose(0, 1).double(), k_KTD.double().repeat_interleave(heads // kv_heads, dim=0)
    norm_HT = q_HTD.norm(dim=-1) * abs(scale)
    floor_HT = scale * (q_HTD * k_HTD).sum(-1) + slopes_H[:, None] * (torch.arange(num_tokens) % TILE_TOKENS)
    for ours_HN, theirs_HN, norm in zip(got, wanted, (0.0, most_H[:, None]), strict=True):
        torch.testing.assert_close(ours_HN.cpu(), theirs_HN, rtol=1e-5, atol=1e-4, equal_nan=True)
        ours_HT = ours_HN.cpu().repeat_interleave(TILE_TOKENS, dim=1)[:, :num_tokens]
        assert (~(ours_HT < norm_HT * norm - floor_HT)).all()


def compare_prefixes(num_tokens: int, epsilon: float, bad: float, device: str) -> None:
    """The same plan: of heads without and with slopes, norms that grow with time, and one that is no number."""
    at_zero_HN = torch.randn(4, -(-num_tokens // TILE_TOKENS), dtype=torch.float64) * 10
    at_most_HN = at_zero_HN + 50 * torch.rand_like(at_zero_HN)
    at_zero_HN[1, -1], start = bad, 100 * PAGE_TOKENS + 77
    num_pages = -(-(start + num_tokens) // PAGE_TOKENS)
    largest_HP = torch.rand(4, num_pages, dtype=torch.float64).cummax(dim=1).values
    slopes_H = torch.tensor([0.0, 2**-16, 0.01, 0.7], dtype=torch.float64)
    given = at_zero_HN, at_most_HN, largest_HP, slopes_H
    starts_N = start + TILE_TOKENS * torch.arange(at_zero_HN.shape[1])
    first_key_HN, mass_HN = _longest_prefixes(*given, starts_N, epsilon=epsilon)
    got = tile_prefixes(
        *(x.to(device) for x in given), start=start, tile_tokens=TILE_TOKENS, epsilon=epsilon, slack=reach._SLACK
    )
    assert first_key_HN.any()
    assert torch.equal(got[0].cpu(), first_key_HN)
    torch.testing.assert_close(got[1].cpu(), mass_HN)


def compare_scores(shape: tuple[int, int, int, int], clip: float, bad: float, device: str, *, is_clamped: bool) -> None:
    """The same numbers, and none below what the bounds say in fp64; behind a clamp without a product."""
    heads, kv_heads, head_dim, num_tokens = shape
    root_LHDD, offset_LHD = torch.randn(2, heads, head_dim, head_dim), torch.randn(2, heads, head_dim)
    if is_clamped:
        root_LHDD = torch.rand(2, heads, 1, 1) * torch.eye(head_dim)
        offset_LHD = torch.zeros(2, heads, head_dim)
    none_LH = torch.zeros(2, heads)
    bounds = EvictionBounds(root_LHDD, offset_LHD, torch.rand(2, heads), clip, floor_LH=none_LH, largest_LH=none_LH)
    k_KTD, start = torch.randn(kv_heads, num_tokens, head_dim), num_tokens % 100
    k_KTD[0, 0], k_KTD[-1, -1, -1] = 0, bad or 1
    there = replace(
        bounds, root_LHDD=root_LHDD.to(device), offset_LHD=offset_LHD.to(device), error_LH=bounds.error_LH.to(device)
    )
    with patch.object(eviction, "can_bound", lambda *_: True):
        scores_HP = there.largest_of_pages(1, k_KTD.to(device), start).cpu()
    assert (there._reach_LH is not None) == is_clamped
    wanted_HP = largest_of_pages(bounds.largest_scores(1, k_KTD), start)
    is_number_HP = wanted_HP.isfinite()
    torch.testing.assert_close(scores_HP[is_number_HP], wanted_HP[is_number_HP])
    assert not scores_HP[~is_number_HP].isfinite().any()
    k_HTD = k_KTD.double().repeat_interleave(heads // kv_heads, dim=0)
    true_HT = (k_HTD @ root_LHDD[1].double().mT).norm(dim=-1) + bounds.error_LH[1, :, None] * k_HTD.norm(dim=-1)
    true_HT += (k_HTD * offset_LHD[1, :, None]).sum(-1).abs()
    if clip < math.inf:
        true_HT = torch.minimum(true_HT, clip * k_HTD.abs().sum(-1))
    assert (~(scores_HP < largest_of_pages(true_HT, start))).all()


def compare_all(device: str) -> None:
    torch.manual_seed(0)
    for bad, (num_tokens, epsilon) in itertools.product(BAD, [(1, 1e-6), (300, 1e-3), (1000, 1e-6)]):
        compare_prefixes(num_tokens, epsilon, bad, device)
    for i, shape in enumerate(SHAPES):
        for dtype, bad in itertools.product((torch.float32, torch.bfloat16), (0.0, BAD[i])):
            compare_exponents(shape, dtype, bad, device)
        for clip, bad in itertools.product((math.inf, 0.5), (0.0, BAD[i])):
            for is_clamped in (False, True):
                compare_scores(shape, clip, bad, device, is_clamped=is_clamped)


@torch.inference_mode()
def read_chunks(storage: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, visited keys, and what is known of pages, behind chunks that begin and end inside of pages."""
    attention = AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2, clip_qkv=1.0)
    config = MPTConfig(d_model=96, n_heads=4, n_layers=2, vocab_size=50, attn_config=attention)
    torch.manual_seed(2)
    model = MPT(config).eval()
    model.init_weights(std=0.3)
    text = Paged(config, capacity_tokens=ids.shape[1], storage=storage)
    table, bounds, logits = text.tables[0], eviction_bounds(model, storage), []
    for start, stop in itertools.pairwise([0, 130, 300, ids.shape[1]]):
        if start == 300:
            table.ids_LKP[1, 0, :1] = -1
        segment = Segment(table, stop - start, text.reads)
        logits.append(model(ids[:, start:stop], KVCache(text.pool, [segment], bounds=bounds)))
        table.num_tokens = stop
    return torch.cat(logits, dim=1), text.reads.visited_H, table.norms_LKP, table.scores_LHP


def compare_texts() -> None:
    """Where the kernels are interpreted, a text that is read by them is the text that operators read."""
    ids = torch.randint(50, (1, 420))
    for storage in ("float32", "int8"):
        wanted = read_chunks(storage, ids)
        with (
            patch.object(chunk, "_has_kernel", lambda *_: True),
            patch.object(reach, "can_bound", lambda *_: True),
            patch.object(eviction, "can_bound", lambda *_: True),
        ):
            got = read_chunks(storage, ids)
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def main() -> None:
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    compare_all("cpu")
    compare_texts()
    print("done")


if __name__ == "__main__":
    main()
