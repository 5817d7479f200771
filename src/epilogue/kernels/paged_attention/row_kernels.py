# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernel of ``split.py`` for one query a key head. Not typed, as those of ``split_kernels.py`` are not."""

import triton
import triton.language as tl


@triton.jit
def _load_factors(ptr, at_N, is_key_N):
    return tl.load(ptr + at_N, mask=is_key_N, other=0.0)


@triton.jit
def _load_keys(ptr, at_N, is_key_N, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    at_ND = at_N[:, None] * HEAD_DIM + columns[None, :]
    if HEAD_DIM == BLOCK_D:  # a mask by columns would tear wide reads apart
        return tl.load(ptr + at_ND, mask=is_key_N[:, None], other=0)
    return tl.load(ptr + at_ND, mask=is_key_N[:, None] & (columns < HEAD_DIM)[None, :], other=0)


@triton.jit
def _int8_to_float(codes):
    """Without conversions, which are slower than other instructions: bits of 2^23 + 128 + code, less 2^23 + 128."""
    return (codes.to(tl.uint8, bitcast=True).to(tl.int32) ^ 0x4B000080).to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def visit_pages_of_a_row_kernel(
    q_ptr, k_ptr, k_scale_ptr, v_ptr, v_scale_ptr,
    table_ptr, num_keys_ptr, slopes_ptr, first_ptr,
    out_ptr, max_ptr, sum_ptr,
    scale, num_heads, num_columns, num_splits,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_FIRST: tl.constexpr,
    K_HAS_SCALE: tl.constexpr, V_HAS_SCALE: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One split of one head: softmax average, largest score, sum of weights.

    Every key of a tile has a softmax of its own with those at its place in other tiles, and they are joined at the end:
    within the loop no thread waits for another warp.
    """
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = sequence * num_heads + head
    num_keys = tl.load(num_keys_ptr + sequence).to(tl.int32)
    slope = tl.load(slopes_ptr + head)
    columns = tl.arange(0, BLOCK_D)
    q_D = tl.load(q_ptr + row * HEAD_DIM + columns, mask=columns < HEAD_DIM, other=0.0).to(tl.float32) * scale

    stop_column = tl.minimum(tl.cdiv(num_keys, PAGE_TOKENS), num_columns)
    start_column = 0
    if HAS_FIRST:
        first = tl.minimum(tl.load(first_ptr + row), 2147483647).to(tl.int32)
        start_column = tl.minimum(tl.maximum(first, 0), stop_column)
    share = tl.cdiv(stop_column - start_column, num_splits)
    start_column += split * share
    stop_column = tl.minimum(start_column + share, stop_column)

    max_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    sum_N = tl.zeros([BLOCK_N], tl.float32)
    out_ND = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    tiles_a_page: tl.constexpr = PAGE_TOKENS // BLOCK_N
    for tile in tl.range(start_column * tiles_a_page, stop_column * tiles_a_page, num_stages=STAGES):
        column = tile // tiles_a_page
        page = tl.load(table_ptr + row * num_columns + column).to(tl.int64)
        in_page_N = tile % tiles_a_page * BLOCK_N + tl.arange(0, BLOCK_N)
        keys_N = column * PAGE_TOKENS + in_page_N
        is_key_N = (keys_N < num_keys) & (page >= 0)
        at_N = page * PAGE_TOKENS + in_page_N
        k_ND = _load_keys(k_ptr, at_N, is_key_N, HEAD_DIM, BLOCK_D)
        v_ND = _load_keys(v_ptr, at_N, is_key_N, HEAD_DIM, BLOCK_D)

        scores_N = tl.sum(k_ND.to(tl.float32) * q_D[None, :], 1)
        if K_HAS_SCALE:
            scores_N *= _load_factors(k_scale_ptr, at_N, is_key_N)
        scores_N += slope * (keys_N - (num_keys - 1)).to(tl.float32)
        scores_N = tl.where(is_key_N, scores_N, float("-inf"))
        new_max_N = tl.maximum(max_N, scores_N)
        finite_max_N = tl.where(new_max_N == float("-inf"), 0.0, new_max_N)
        weights_N = tl.exp(scores_N - finite_max_N)
        shrink_N = tl.exp(max_N - finite_max_N)
        max_N, sum_N = new_max_N, sum_N * shrink_N + weights_N
        if V_HAS_SCALE:
            weights_N *= _load_factors(v_scale_ptr, at_N, is_key_N)
            # Keys take the conversions: half of the codes each way keeps both kinds of units busy.
            wide_ND = _int8_to_float(v_ND)
        else:
            wide_ND = v_ND.to(tl.float32)
        out_ND = out_ND * shrink_N[:, None] + weights_N[:, None] * wide_ND

    largest = tl.max(max_N, 0)
    share_N = tl.exp(max_N - tl.where(largest == float("-inf"), 0.0, largest))
    place = row * num_splits + split
    tl.store(max_ptr + place, largest)
    tl.store(sum_ptr + place, tl.sum(sum_N * share_N, 0))
    out_D = tl.sum(out_ND * share_N[:, None], 0)
    tl.store(out_ptr + place * HEAD_DIM + columns, out_D, mask=columns < HEAD_DIM)
