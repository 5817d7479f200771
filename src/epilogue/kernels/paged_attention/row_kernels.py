# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return,assignment"
"""The Triton kernel of ``split.py`` for one query a key head and int8 pages. Not typed, as ``split_kernels.py`` is not.

W counts words, four codes in an int32 each, and B a word's bytes. The kernel reads memory as fast as it has few
instructions a key, so codes are not converted one by one: four at a time are multiplied as whole numbers (dp4a), and
where weights meet values a code's byte is put into a float's last bits. Compiled only; the interpreter takes the same
steps byte by byte.
"""

import triton
import triton.language as tl


@triton.jit
def _dot_of_words(a, b, total, IS_COMPILED: tl.constexpr):
    """total plus the products of four codes each."""
    if IS_COMPILED:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total], dtype=tl.int32, is_pure=True, pack=1
        )
    for byte in tl.static_range(4):
        total += ((a << (24 - 8 * byte)) >> 24) * ((b << (24 - 8 * byte)) >> 24)
    return total


@triton.jit
def _float_of_byte(words, BYTE: tl.constexpr, IS_COMPILED: tl.constexpr):
    """One code of each word. Its byte, made unsigned, is the last of 2^23's bits: a float without a conversion."""
    words ^= -2139062144  # every byte's highest bit
    if not IS_COMPILED:
        bits = (words >> (8 * BYTE)) & 255 | 0x4B000000
    elif BYTE == 0:
        bits = _byte_into_float("prmt.b32 $0, $1, 0x4B000000, 0x7540;", words)
    elif BYTE == 1:
        bits = _byte_into_float("prmt.b32 $0, $1, 0x4B000000, 0x7541;", words)
    elif BYTE == 2:
        bits = _byte_into_float("prmt.b32 $0, $1, 0x4B000000, 0x7542;", words)
    else:
        bits = _byte_into_float("prmt.b32 $0, $1, 0x4B000000, 0x7543;", words)
    return bits.to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def _byte_into_float(ASSEMBLY: tl.constexpr, words):
    return tl.inline_asm_elementwise(ASSEMBLY, "=r,r", [words], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _words(codes_WB):
    """Four int8 numbers each, held in int32, as words."""
    return tl.sum((codes_WB & 255) << (8 * tl.arange(0, 4))[None, :], 1)


@triton.jit
def _query_as_words(q_ptr, HEAD_DIM: tl.constexpr, BLOCK_W: tl.constexpr):
    """A query in steps of a 32,512th of its largest element, as three numbers: q = step * (256 high + low + rest/254).

    NaN and infinity make the step NaN.
    """
    at_WB = 4 * tl.arange(0, BLOCK_W)[:, None] + tl.arange(0, 4)[None, :]
    q_WB = tl.load(q_ptr + at_WB, mask=at_WB < HEAD_DIM, other=0.0).to(tl.float32)
    size_WB = tl.abs(q_WB)
    is_finite = tl.min((size_WB < float("inf")).to(tl.int32)) == 1
    step = tl.maximum(tl.div_rn(tl.max(size_WB), 32512.0), 1.1754943508222875e-38)
    steps_WB = tl.where(is_finite, tl.div_rn(q_WB, tl.zeros_like(q_WB) + step), 0.0)
    whole_WB = tl.floor(steps_WB + 0.5)
    rest_WB = tl.floor((steps_WB - whole_WB) * 254.0 + 0.5).to(tl.int32)
    whole_WB = whole_WB.to(tl.int32)
    high_WB = (whole_WB + 128) >> 8
    step = tl.where(is_finite, step, float("nan"))
    return step, _words(high_WB), _words(whole_WB - (high_WB << 8)), _words(rest_WB)


@triton.jit
def _products_with_query(k_NW, high_W, low_W, rest_W, HAS_REST: tl.constexpr, IS_COMPILED: tl.constexpr):
    """q.k of a tile in steps of the query; what its words say is summed as whole numbers."""
    nothing_NW = tl.zeros_like(k_NW)
    whole_NW = _dot_of_words(k_NW, tl.broadcast_to(high_W[None, :], k_NW.shape), nothing_NW, IS_COMPILED) << 8
    whole_NW = _dot_of_words(k_NW, tl.broadcast_to(low_W[None, :], k_NW.shape), whole_NW, IS_COMPILED)
    products_N = tl.sum(whole_NW, 1).to(tl.float32)
    if HAS_REST:
        rest_NW = _dot_of_words(k_NW, tl.broadcast_to(rest_W[None, :], k_NW.shape), nothing_NW, IS_COMPILED)
        products_N += tl.sum(rest_NW, 1).to(tl.float32) * (1.0 / 254.0)
    return products_N


@triton.jit
def _columns_of_split(
    num_keys, first_ptr, num_columns, split, columns_a_split, PAGE_TOKENS: tl.constexpr, HAS_FIRST: tl.constexpr
):
    """From which column of the table to which a split visits its head's pages."""
    stop_column = tl.minimum(tl.cdiv(num_keys, PAGE_TOKENS), num_columns)
    start_column = 0
    if HAS_FIRST:
        first = tl.minimum(tl.load(first_ptr), 2147483647).to(tl.int32)
        start_column = tl.minimum(tl.maximum(first, 0), stop_column)
    start_column += split * columns_a_split
    return start_column, tl.minimum(start_column + columns_a_split, stop_column)


@triton.jit
def _store_split(pointers, max_N, sum_N, outs, HEAD_DIM: tl.constexpr, BLOCK_W: tl.constexpr):
    """Join the places of a tile: largest score, sum of weights, and weighted values, one tensor for each byte."""
    max_ptr, sum_ptr, out_ptr = pointers
    largest = tl.max(max_N, 0)
    share_N = tl.exp(max_N - tl.where(largest == float("-inf"), 0.0, largest))
    tl.store(max_ptr, largest)
    tl.store(sum_ptr, tl.sum(sum_N * share_N, 0))
    places = 4 * tl.arange(0, BLOCK_W)
    for byte in tl.static_range(4):
        tl.store(out_ptr + places + byte, tl.sum(outs[byte] * share_N[:, None], 0), mask=places < HEAD_DIM)


@triton.jit
def visit_int8_pages_of_a_row_kernel(
    q_ptr, k_ptr, k_scale_ptr, v_ptr, v_scale_ptr,
    table_ptr, num_keys_ptr, slopes_ptr, first_ptr,
    out_ptr, max_ptr, sum_ptr,
    scale, num_heads, num_columns, num_splits, columns_a_split,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_W: tl.constexpr, HAS_FIRST: tl.constexpr,
    HAS_REST: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr, STAGES: tl.constexpr,
    IS_COMPILED: tl.constexpr,
):  # fmt: skip
    """One split of one head: softmax average, largest score, sum of weights.

    Every key of a tile has a softmax of its own with those at its place in other tiles, and they are joined at the end:
    within the loop no thread waits for another warp. A step takes UNROLL tiles and shrinks what is summed once.
    """
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = sequence * num_heads + head
    place = row * num_splits + split
    num_keys = tl.load(num_keys_ptr + sequence).to(tl.int32)
    start_column, stop_column = _columns_of_split(
        num_keys, first_ptr + row, num_columns, split, columns_a_split, PAGE_TOKENS, HAS_FIRST
    )
    if start_column >= stop_column:
        tl.store(max_ptr + place, float("-inf"))
        return

    slope = tl.load(slopes_ptr + head)
    step, high_W, low_W, rest_W = _query_as_words(q_ptr + row * HEAD_DIM, HEAD_DIM, BLOCK_W)
    words = tl.arange(0, BLOCK_W)
    k_words_ptr = k_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
    v_words_ptr = v_ptr.to(tl.pointer_type(tl.int32), bitcast=True)

    max_N = tl.full([BLOCK_N], float("-inf"), tl.float32)
    sum_N = tl.zeros([BLOCK_N], tl.float32)
    nothing_NW = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
    out_0_NW, out_1_NW, out_2_NW, out_3_NW = nothing_NW, nothing_NW, nothing_NW, nothing_NW
    steps_a_page: tl.constexpr = PAGE_TOKENS // (BLOCK_N * UNROLL)
    for at in tl.range(start_column * steps_a_page, stop_column * steps_a_page, num_stages=STAGES):
        column = at // steps_a_page
        page = tl.load(table_ptr + row * num_columns + column).to(tl.int64)
        scores = ()
        values = ()
        new_max_N = max_N
        for tile in tl.static_range(UNROLL):
            in_page_N = (at % steps_a_page * UNROLL + tile) * BLOCK_N + tl.arange(0, BLOCK_N)
            keys_N = column * PAGE_TOKENS + in_page_N
            is_key_N = (keys_N < num_keys) & (page >= 0)
            at_N = page * PAGE_TOKENS + in_page_N
            at_NW = at_N[:, None] * (HEAD_DIM // 4) + words[None, :]
            is_word_NW = is_key_N[:, None]
            if HEAD_DIM != 4 * BLOCK_W:  # a mask by columns would tear wide reads apart
                is_word_NW &= (4 * words < HEAD_DIM)[None, :]
            values += (tl.load(v_words_ptr + at_NW, mask=is_word_NW, other=0),)
            k_NW = tl.load(k_words_ptr + at_NW, mask=is_word_NW, other=0)
            products_N = _products_with_query(k_NW, high_W, low_W, rest_W, HAS_REST, IS_COMPILED)
            factor_N = tl.load(k_scale_ptr + at_N, mask=is_key_N, other=0.0) * (step * scale)
            score_N = products_N * factor_N + slope * (keys_N - (num_keys - 1)).to(tl.float32)
            score_N = tl.where(is_key_N, score_N, float("-inf"))
            scores += ((score_N, tl.load(v_scale_ptr + at_N, mask=is_key_N, other=0.0)),)
            new_max_N = tl.maximum(new_max_N, score_N)

        finite_max_N = tl.where(new_max_N == float("-inf"), 0.0, new_max_N)
        shrink_N = tl.exp(max_N - finite_max_N)
        max_N, sum_N = new_max_N, sum_N * shrink_N
        shrink_N1 = shrink_N[:, None]
        out_0_NW, out_1_NW, out_2_NW, out_3_NW = (
            out_0_NW * shrink_N1, out_1_NW * shrink_N1, out_2_NW * shrink_N1, out_3_NW * shrink_N1
        )  # fmt: skip
        for tile in tl.static_range(UNROLL):
            weights_N = tl.exp(scores[tile][0] - finite_max_N)
            sum_N += weights_N
            weights_N1 = (weights_N * scores[tile][1])[:, None]
            out_0_NW += weights_N1 * _float_of_byte(values[tile], 0, IS_COMPILED)
            out_1_NW += weights_N1 * _float_of_byte(values[tile], 1, IS_COMPILED)
            out_2_NW += weights_N1 * _float_of_byte(values[tile], 2, IS_COMPILED)
            out_3_NW += weights_N1 * _float_of_byte(values[tile], 3, IS_COMPILED)

    _store_split(
        (max_ptr + place, sum_ptr + place, out_ptr + place * HEAD_DIM), max_N, sum_N,
        (out_0_NW, out_1_NW, out_2_NW, out_3_NW), HEAD_DIM, BLOCK_W,
    )  # fmt: skip
