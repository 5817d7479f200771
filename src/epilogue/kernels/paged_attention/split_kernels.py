# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The two Triton kernels of ``split.py``. R counts rows, the queries that share a key head, and N the keys of a tile.

Kernels are not typed: their arguments are Python objects before they are compiled, and none after.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def _load_tile(ptr, rows_N, is_row_N, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of a matrix [.., WIDTH] as [N, BLOCK]; zeros where there is none."""
    columns = tl.arange(0, BLOCK)
    mask = is_row_N[:, None] & (columns < WIDTH)[None, :]
    return tl.load(ptr + rows_N[:, None] * WIDTH + columns[None, :], mask=mask, other=0)


@triton.jit
def _store_tile(ptr_R, tile_RD, is_row_R, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    mask = is_row_R[:, None] & (columns < WIDTH)[None, :]
    tl.store(ptr_R[:, None] + columns[None, :], tile_RD, mask=mask)


@triton.jit
def _low_codes(packed):
    return ((packed.to(tl.int32) & 15) ^ 8) - 8


@triton.jit
def _high_codes(packed):
    return ((packed.to(tl.int32) >> 4) ^ 8) - 8


@triton.jit
def _products_with_keys(
    q_RD, q_high_RD, q_sum_R, k_ptr, scale_ptr, zero_ptr, at_N, is_key_N,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_SCALE: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """q.k of a tile, [R, N]: codes are multiplied as they are, scale and zero point act on the products."""
    k_ND = _load_tile(k_ptr, at_N, is_key_N, WIDTH, BLOCK)
    if IS_PACKED:
        low_ND, high_ND = _low_codes(k_ND).to(q_RD.dtype), _high_codes(k_ND).to(q_RD.dtype)
        products_RN = tl.dot(q_RD, tl.trans(low_ND), input_precision="ieee")
        products_RN += tl.dot(q_high_RD, tl.trans(high_ND), input_precision="ieee")
        products_RN -= q_sum_R[:, None] * tl.load(zero_ptr + at_N, mask=is_key_N, other=0.0)[None, :]
    else:
        products_RN = tl.dot(q_RD, tl.trans(k_ND.to(q_RD.dtype)), input_precision="ieee")
    if HAS_SCALE:
        products_RN *= tl.load(scale_ptr + at_N, mask=is_key_N, other=0.0)[None, :]
    return products_RN


@triton.jit
def _products_with_values(
    weights_RN, product_type: tl.constexpr, v_ptr, scale_ptr, zero_ptr, at_N, is_key_N,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_SCALE: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Sums of a tile's weighted values, [R, D] and for packed codes the second half of the width (else zeros)."""
    v_ND = _load_tile(v_ptr, at_N, is_key_N, WIDTH, BLOCK)
    if HAS_SCALE:
        weights_RN *= tl.load(scale_ptr + at_N, mask=is_key_N, other=0.0)[None, :]
    factors_RN = weights_RN.to(product_type)
    if IS_PACKED:
        low_ND, high_ND = _low_codes(v_ND).to(product_type), _high_codes(v_ND).to(product_type)
        zero_N = tl.load(zero_ptr + at_N, mask=is_key_N, other=0.0)
        offset_R = tl.sum(factors_RN.to(tl.float32) * zero_N[None, :], 1)
        out_RD = tl.dot(factors_RN, low_ND, input_precision="ieee") - offset_R[:, None]
        out_high_RD = tl.dot(factors_RN, high_ND, input_precision="ieee") - offset_R[:, None]
    else:
        out_RD = tl.dot(factors_RN, v_ND.to(product_type), input_precision="ieee")
        out_high_RD = tl.zeros_like(out_RD)
    return out_RD, out_high_RD


@triton.jit
def visit_pages_kernel(
    q_ptr, k_ptr, k_scale_ptr, k_zero_ptr, v_ptr, v_scale_ptr, v_zero_ptr,
    table_ptr, num_keys_ptr, slopes_ptr, first_ptr,
    out_ptr, max_ptr, sum_ptr,
    scale, num_kv_heads, num_columns, num_rows, num_queries, num_splits,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_FIRST: tl.constexpr,
    K_WIDTH: tl.constexpr, K_BLOCK: tl.constexpr, K_HAS_SCALE: tl.constexpr, K_IS_PACKED: tl.constexpr,
    V_WIDTH: tl.constexpr, V_BLOCK: tl.constexpr, V_HAS_SCALE: tl.constexpr, V_IS_PACKED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One split of one block of query rows of one key head: softmax average, largest score, sum of weights."""
    split, sequence = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row_blocks = tl.cdiv(num_rows, BLOCK_R)
    kv_head = tl.program_id(1) // row_blocks
    rows_R = tl.program_id(1) % row_blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row_R = rows_R < num_rows
    places_R = (sequence * num_kv_heads + kv_head) * num_rows + rows_R
    heads_R = kv_head * (num_rows // num_queries) + rows_R // num_queries
    num_keys = tl.load(num_keys_ptr + sequence).to(tl.int32)
    positions_R = num_keys - num_queries + rows_R % num_queries
    slopes_R = tl.load(slopes_ptr + heads_R, mask=is_row_R, other=0.0)

    q_RD = _load_tile(q_ptr, places_R * (HEAD_DIM // K_WIDTH), is_row_R, K_WIDTH, K_BLOCK)
    q_high_RD = q_RD
    if K_IS_PACKED:
        q_high_RD = _load_tile(q_ptr, places_R * 2 + 1, is_row_R, K_WIDTH, K_BLOCK)
    q_sum_R = tl.sum(q_RD.to(tl.float32) + q_high_RD.to(tl.float32), 1)

    stop_column = tl.minimum(tl.cdiv(num_keys, PAGE_TOKENS), num_columns)
    start_column = 0
    if HAS_FIRST:
        first_at = sequence * num_kv_heads * (num_rows // num_queries) + heads_R
        first_R = tl.load(first_ptr + first_at, mask=is_row_R, other=2147483647).to(tl.int32)
        start_column = tl.minimum(tl.maximum(tl.min(first_R, 0), 0), stop_column)
    share = tl.cdiv(stop_column - start_column, num_splits)
    start_column += split * share
    stop_column = tl.minimum(start_column + share, stop_column)

    max_R = tl.full([BLOCK_R], float("-inf"), tl.float32)
    sum_R = tl.zeros([BLOCK_R], tl.float32)
    out_RD = tl.zeros([BLOCK_R, V_BLOCK], tl.float32)
    out_high_RD = tl.zeros([BLOCK_R, V_BLOCK], tl.float32)
    tiles_a_page: tl.constexpr = PAGE_TOKENS // BLOCK_N
    for tile in range(start_column * tiles_a_page, stop_column * tiles_a_page):
        column = tile // tiles_a_page
        page = tl.load(table_ptr + (sequence * num_kv_heads + kv_head) * num_columns + column).to(tl.int64)
        in_page_N = tile % tiles_a_page * BLOCK_N + tl.arange(0, BLOCK_N)
        keys_N = column * PAGE_TOKENS + in_page_N
        is_key_N = (keys_N < num_keys) & (page >= 0)
        at_N = page * PAGE_TOKENS + in_page_N

        scores_RN = _products_with_keys(
            q_RD, q_high_RD, q_sum_R, k_ptr, k_scale_ptr, k_zero_ptr, at_N, is_key_N,
            K_WIDTH, K_BLOCK, K_HAS_SCALE, K_IS_PACKED,
        )  # fmt: skip
        ahead_RN = keys_N[None, :] - positions_R[:, None]
        scores_RN = scores_RN * scale + slopes_R[:, None] * ahead_RN.to(tl.float32)
        is_seen_RN = is_key_N[None, :] & (ahead_RN <= 0)
        if HAS_FIRST:
            is_seen_RN &= (column >= first_R)[:, None]
        scores_RN = tl.where(is_seen_RN, scores_RN, float("-inf"))

        new_max_R = tl.maximum(max_R, tl.max(scores_RN, 1))
        finite_max_R = tl.where(new_max_R == float("-inf"), 0.0, new_max_R)
        weights_RN = tl.exp(scores_RN - finite_max_R[:, None])
        shrink_R = tl.exp(max_R - finite_max_R)
        max_R, sum_R = new_max_R, sum_R * shrink_R + tl.sum(weights_RN, 1)
        part_RD, part_high_RD = _products_with_values(
            weights_RN, q_ptr.dtype.element_ty, v_ptr, v_scale_ptr, v_zero_ptr, at_N, is_key_N,
            V_WIDTH, V_BLOCK, V_HAS_SCALE, V_IS_PACKED,
        )  # fmt: skip
        out_RD = out_RD * shrink_R[:, None] + part_RD
        out_high_RD = out_high_RD * shrink_R[:, None] + part_high_RD

    places_R = places_R * num_splits + split
    tl.store(max_ptr + places_R, max_R, mask=is_row_R)
    tl.store(sum_ptr + places_R, sum_R, mask=is_row_R)
    _store_tile(out_ptr + places_R * HEAD_DIM, out_RD, is_row_R, V_WIDTH, V_BLOCK)
    if V_IS_PACKED:
        _store_tile(out_ptr + places_R * HEAD_DIM + V_WIDTH, out_high_RD, is_row_R, V_WIDTH, V_BLOCK)


@triton.jit
def join_splits_kernel(
    part_ptr, max_ptr, sum_ptr, out_ptr, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, ALLOWS_EARLY: tl.constexpr,
):  # fmt: skip
    """Some columns of one query row: the average of its splits, each weighted by its share of the softmax.

    Of a split that saw nothing, whose largest score is -inf, nothing else is used: it need not be written.
    """
    if ALLOWS_EARLY:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    splits_P = tl.arange(0, BLOCK_P)
    at_P = row * num_splits + splits_P
    max_P = tl.load(max_ptr + at_P, mask=splits_P < num_splits, other=float("-inf"))
    # Read whether written or not: waiting for the maxima would take longer.
    sum_P = tl.load(sum_ptr + at_P, mask=splits_P < num_splits, other=0.0)
    has_seen_P = max_P != float("-inf")
    at_PD = at_P[:, None] * HEAD_DIM + columns[None, :]
    is_part_PD = has_seen_P[:, None]
    if HEAD_DIM % BLOCK_D != 0:  # a mask by columns would tear wide reads apart
        is_part_PD &= (columns < HEAD_DIM)[None, :]
    part_PD = tl.load(part_ptr + at_PD, mask=is_part_PD, other=0.0)
    best = tl.max(max_P, 0)
    share_P = tl.exp(max_P - tl.where(best == float("-inf"), 0.0, best))
    total = tl.sum(tl.where(has_seen_P, share_P * sum_P, 0.0), 0)
    out_D = tl.sum(share_P[:, None] * part_PD, 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + row * HEAD_DIM + columns, out_D, mask=columns < HEAD_DIM)
