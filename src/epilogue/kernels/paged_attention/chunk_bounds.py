"""What bounds need of a chunk's queries and keys, of each tile or page one number: on a GPU one Triton launch each.

Their slow twins are ``model.reach`` and ``model.eviction``, which vouch for the bounds.
"""

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.storage import PAGE_TOKENS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_bound(*tensors: Tensor) -> bool:
    """Whether these are where the kernels run, in dtypes that they know."""
    known = all(x.device.type == "cuda" and x.dtype in _DTYPES for x in tensors)
    return known and not torch.compiler.is_compiling()


def tile_exponents(
    q_THD: Tensor,
    k_TKD: Tensor,
    slopes_H: Tensor,
    most_H: Tensor,
    *,
    scale: float,
    tile_tokens: int,
    rounding: float,
    least: float,
) -> tuple[Tensor, Tensor]:
    """The largest of every tile of |scale q| K - own - slope * row, for K = 0 and for K = most; both fp64 [H, N].

    With row the query's place in its tile, |q| at least its norm and own at most its score with its own key. NaN where
    one of the tile's is.

    Args:
        q_THD: queries that ``can_bound`` knows.
        k_TKD: their own keys.
        slopes_H: fp32 or fp64.
        most_H: fp64, no key has a larger norm.
        scale: factor on q.k.
        tile_tokens: a multiple of 32.
        rounding: fp32 norms and scores may be wrong by this share of |q| |k|.
        least: what a norm may be too small by.
    """
    (num_queries, num_heads, head_dim), num_kv_heads = q_THD.shape, k_TKD.shape[1]
    q_THD, k_TKD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_THD, k_TKD))
    slopes_H, most_H = slopes_H.contiguous(), most_H.contiguous()
    num_tiles = -(-num_queries // tile_tokens)
    at_zero_HN, at_most_HN = (q_THD.new_empty((num_heads, num_tiles), dtype=torch.float64) for _ in range(2))
    _kernel("tile_exponents_kernel")[(num_tiles, num_heads)](
        q_THD, k_TKD, *q_THD.stride()[:2], *k_TKD.stride()[:2], slopes_H, most_H, at_zero_HN, at_most_HN, num_queries,
        HEAD_DIM=head_dim, BLOCK_D=_next_power_of_2(head_dim), BLOCK_T=32, TILE_TOKENS=tile_tokens,
        GROUP=num_heads // num_kv_heads, SCALE=scale, ROUNDING=rounding, LEAST=least, num_warps=4,
    )  # fmt: skip
    return at_zero_HN, at_most_HN


def tile_prefixes(
    at_zero_HN: Tensor,
    at_most_HN: Tensor,
    largest_HP: Tensor,
    slopes_H: Tensor,
    *,
    start: int,
    tile_tokens: int,
    epsilon: float,
    slack: float,
) -> tuple[Tensor, Tensor]:
    """For every tile the longest prefix of pages of which each shorter one, too, may be left out: ``plan_reach``'s end.

    Args:
        at_zero_HN: fp64, as ``tile_exponents`` gives them.
        at_most_HN: the same.
        largest_HP: fp64, of every prefix of pages the largest norm; the last is what ``at_most_HN`` is of.
        slopes_H: fp64.
        start: the first query's position.
        tile_tokens: queries of a tile.
        epsilon: above 0.
        slack: nats added to every bound.

    Returns:
        first_key_HN, int64, and omitted_mass_HN, fp64.
    """
    largest_HP, slopes_H = largest_HP.contiguous(), slopes_H.contiguous()
    num_heads, num_tiles = at_zero_HN.shape
    first_key_HN = at_zero_HN.new_empty((num_heads, num_tiles), dtype=torch.int64)
    mass_HN = torch.empty_like(at_zero_HN)
    _kernel("tile_prefixes_kernel")[(num_tiles, num_heads)](
        at_zero_HN, at_most_HN, largest_HP, slopes_H, first_key_HN, mass_HN, largest_HP.shape[1], start,
        TILE_TOKENS=tile_tokens, PAGE_TOKENS=PAGE_TOKENS, EPSILON=epsilon, LOG_EPSILON=math.log(epsilon), SLACK=slack,
        BLOCK_P=512, num_warps=4,
    )  # fmt: skip
    return first_key_HN, mass_HN


def page_scores(
    k_KTD: Tensor, turned_HTD: Tensor | None, offset_HD: Tensor | None, error_H: Tensor, *, clip: float, start: int
) -> Tensor:
    """scores_HP, fp32: of every page's keys the largest |turned| + |offset.k| + error |k|, or clip * sum |k_i| if less.

    NaN where one of the page's is.

    Args:
        k_KTD: fp32.
        turned_HTD: fp32, what the root makes of them; None where ``error_H`` has that in it, for zeros.
        offset_HD: fp32; None with the former.
        error_H: fp32, of as many heads as there are queries'.
        clip: infinite for none.
        start: tokens of the first page that come before these.
    """
    (num_kv_heads, num_tokens, head_dim), num_heads, is_turned = k_KTD.shape, len(error_H), turned_HTD is not None
    turned_HTD, offset_HD = (k_KTD if x is None else x for x in (turned_HTD, offset_HD))
    k_KTD, turned_HTD, offset_HD = (x.contiguous() for x in (k_KTD, turned_HTD, offset_HD))
    num_columns = -(-(start + num_tokens) // PAGE_TOKENS)
    scores_HP = k_KTD.new_empty((num_heads, num_columns))
    # With keys alone a page is read in one go.
    rows, num_warps = (32, 4) if is_turned else (PAGE_TOKENS, 8)
    _kernel("page_scores_kernel")[(num_columns, num_heads)](
        k_KTD, turned_HTD, offset_HD, error_H, error_H.stride(0), scores_HP, clip, start, num_tokens,
        PAGE_TOKENS=PAGE_TOKENS, HEAD_DIM=head_dim, BLOCK_D=_next_power_of_2(head_dim), BLOCK_W=rows,
        GROUP=num_heads // num_kv_heads, IS_TURNED=is_turned, num_warps=num_warps,
    )  # fmt: skip
    return scores_HP


def _kernel(name: str) -> Any:
    # Triton comes in with the first call: a machine without an accelerator may lack it.
    return getattr(import_module("epilogue.kernels.paged_attention.chunk_bounds_kernels"), name)


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
