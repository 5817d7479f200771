# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernels of ``chunk_bounds.py``. Not typed, as those of ``split_kernels.py`` are not.

Sums are of fp32, in whatever order. A maximum would pass over a NaN, so that these are counted.
"""

import triton
import triton.language as tl


@triton.jit
def _at_least(norm, ROUNDING: tl.constexpr, LEAST: tl.constexpr):
    """fp64 numbers no smaller than the true norms, as in ``model.reach``."""
    return norm * (1.0 + tl.full([], ROUNDING, tl.float64)) + tl.full([], LEAST, tl.float64)


@triton.jit(do_not_specialize=["num_queries"])
def tile_exponents_kernel(
    q_ptr, k_ptr, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    slopes_ptr, most_ptr, at_zero_ptr, at_most_ptr, num_queries,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, TILE_TOKENS: tl.constexpr,
    GROUP: tl.constexpr, SCALE: tl.constexpr, ROUNDING: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """One tile of a head."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns_D = tl.arange(0, BLOCK_D)
    slope = tl.load(slopes_ptr + head).to(tl.float64)
    most = tl.load(most_ptr + head)
    scale = tl.full([], SCALE, tl.float64)
    at_zero_T = tl.full([BLOCK_T], float("-inf"), tl.float64)
    at_most_T = tl.full([BLOCK_T], float("-inf"), tl.float64)
    num_nan_T = tl.zeros([BLOCK_T], tl.int32)
    for first in range(0, TILE_TOKENS, BLOCK_T):
        row_T = first + tl.arange(0, BLOCK_T)
        token_T = (tile * TILE_TOKENS + row_T).to(tl.int64)
        is_query_T = token_T < num_queries
        is_there_TD = is_query_T[:, None] & (columns_D < HEAD_DIM)[None, :]
        q_at_TD = token_T[:, None] * q_token_stride + head * q_head_stride + columns_D[None, :]
        k_at_TD = token_T[:, None] * k_token_stride + (head // GROUP) * k_head_stride + columns_D[None, :]
        q_TD = tl.load(q_ptr + q_at_TD, mask=is_there_TD, other=0.0).to(tl.float32)
        k_TD = tl.load(k_ptr + k_at_TD, mask=is_there_TD, other=0.0).to(tl.float32)
        norm_T = _at_least(tl.sqrt(tl.sum(q_TD * q_TD, 1).to(tl.float64)), ROUNDING, LEAST) * tl.abs(scale)
        own_norm_T = _at_least(tl.sqrt(tl.sum(k_TD * k_TD, 1).to(tl.float64)), ROUNDING, LEAST)
        own_T = tl.sum(q_TD * k_TD, 1).to(tl.float64) * scale
        own_T = own_T - tl.full([], ROUNDING, tl.float64) * norm_T * own_norm_T
        zero_T = -(own_T + slope * row_T.to(tl.float64))
        top_T = norm_T * most + zero_T
        num_nan_T += (is_query_T & ((zero_T != zero_T) | (top_T != top_T))).to(tl.int32)
        at_zero_T = tl.maximum(at_zero_T, tl.where(is_query_T, zero_T, float("-inf")))
        at_most_T = tl.maximum(at_most_T, tl.where(is_query_T, top_T, float("-inf")))
    is_nan = tl.sum(num_nan_T, 0) > 0
    at = head * tl.num_programs(0) + tile
    tl.store(at_zero_ptr + at, tl.where(is_nan, float("nan"), tl.max(at_zero_T, 0)))
    tl.store(at_most_ptr + at, tl.where(is_nan, float("nan"), tl.max(at_most_T, 0)))


@triton.jit
def _prefix_bound(
    pages, zero, most, top, slope, largest_row_ptr, tile_start, is_there,
    PAGE_TOKENS: tl.constexpr, SLACK: tl.constexpr,
):  # fmt: skip
    """Of prefixes that end with these pages: nats of all their keys together, at most."""
    older = ((pages + 1) * PAGE_TOKENS).to(tl.float64)
    largest = tl.load(largest_row_ptr + pages, mask=is_there, other=0.0)
    # Infinite without a slope, where the number of keys is less.
    tail = tl.minimum(older, 1.0 / (1.0 - tl.exp(-slope)))
    exponent = zero + (most - zero) * (largest / top)
    return exponent - slope * (tile_start.to(tl.float64) - older + 1.0) + tl.log(tail) + tl.full([], SLACK, tl.float64)


@triton.jit(do_not_specialize=["num_pages", "start"])
def tile_prefixes_kernel(
    at_zero_ptr, at_most_ptr, largest_ptr, slopes_ptr, first_key_ptr, mass_ptr, num_pages, start,
    TILE_TOKENS: tl.constexpr, PAGE_TOKENS: tl.constexpr, BLOCK_P: tl.constexpr,
    EPSILON: tl.constexpr, LOG_EPSILON: tl.constexpr, SLACK: tl.constexpr,
):  # fmt: skip
    """One tile of a head."""
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = head * tl.num_programs(0) + tile
    zero, most, slope = tl.load(at_zero_ptr + at), tl.load(at_most_ptr + at), tl.load(slopes_ptr + head)
    largest_row_ptr = largest_ptr + head * num_pages
    top = tl.load(largest_row_ptr + num_pages - 1)
    tile_start = start + tile * TILE_TOKENS
    skipped = num_pages
    for first in range(0, num_pages, BLOCK_P):
        pages_P = first + tl.arange(0, BLOCK_P)
        is_there_P = pages_P < num_pages
        bound_P = _prefix_bound(
            pages_P, zero, most, top, slope, largest_row_ptr, tile_start, is_there_P, PAGE_TOKENS, SLACK
        )
        is_older_P = is_there_P & ((pages_P + 1) * PAGE_TOKENS <= tile_start)
        may_skip_P = (bound_P <= tl.full([], LOG_EPSILON, tl.float64)) & is_older_P
        skipped = tl.minimum(skipped, tl.min(tl.where(may_skip_P, num_pages, pages_P), 0))
    last = tl.maximum(skipped - 1, 0)
    mass = tl.exp(
        _prefix_bound(last, zero, most, top, slope, largest_row_ptr, tile_start, last >= 0, PAGE_TOKENS, SLACK)
    )
    mass = tl.minimum(mass, tl.full([], EPSILON, tl.float64))
    tl.store(first_key_ptr + at, skipped.to(tl.int64) * PAGE_TOKENS)
    tl.store(mass_ptr + at, tl.where(skipped > 0, mass, 0.0))


# A row begins at a multiple of HEAD_DIM, which is why no stride is an argument: of one that is not specialised nothing
# is known, and every number would be loaded by itself.
@triton.jit(do_not_specialize=["start", "num_tokens"], do_not_specialize_on_alignment=["error_ptr"])
def page_scores_kernel(
    k_ptr, turned_ptr, offset_ptr, error_ptr, error_stride, scores_ptr, clip, start, num_tokens,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    GROUP: tl.constexpr, IS_TURNED: tl.constexpr,
):  # fmt: skip
    """One page of a head."""
    column, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns_D = tl.arange(0, BLOCK_D)
    is_column_D = columns_D < HEAD_DIM
    error = tl.load(error_ptr + head * error_stride)
    score_W = tl.zeros([BLOCK_W], tl.float32)
    num_nan_W = tl.zeros([BLOCK_W], tl.int32)
    for first in range(0, PAGE_TOKENS, BLOCK_W):
        token_W = (column * PAGE_TOKENS + first + tl.arange(0, BLOCK_W) - start).to(tl.int64)
        is_there_WD = ((token_W >= 0) & (token_W < num_tokens))[:, None] & is_column_D[None, :]
        k_at_WD = ((head // GROUP) * num_tokens + token_W)[:, None] * HEAD_DIM + columns_D[None, :]
        k_WD = tl.load(k_ptr + k_at_WD, mask=is_there_WD, other=0.0)
        row_W = error * tl.sqrt_rn(tl.sum(k_WD * k_WD, 1))
        if IS_TURNED:
            turned_at_WD = (head * num_tokens + token_W)[:, None] * HEAD_DIM + columns_D[None, :]
            turned_WD = tl.load(turned_ptr + turned_at_WD, mask=is_there_WD, other=0.0)
            offset_D = tl.load(offset_ptr + head * HEAD_DIM + columns_D, mask=is_column_D, other=0.0)
            row_W += tl.sqrt_rn(tl.sum(turned_WD * turned_WD, 1)) + tl.abs(tl.sum(k_WD * offset_D[None, :], 1))
        num_nan_W += (row_W != row_W).to(tl.int32)
        # Without a clamp the other bound is infinite, or 0 times that for a key of zeros.
        clipped_W = clip * tl.sum(tl.abs(k_WD), 1)
        row_W = tl.where(clipped_W < row_W, clipped_W, row_W)
        score_W = tl.maximum(score_W, row_W)
    score = tl.where(tl.sum(num_nan_W, 0) > 0, float("nan"), tl.max(score_W, 0))
    tl.store(scores_ptr + head * tl.num_programs(0) + column, score)
