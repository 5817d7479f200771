# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernel of ``take_in.py``. Not typed, as those of ``split_kernels.py`` are not."""

import triton
import triton.language as tl


@triton.jit
def int8_scale(largest, is_finite):
    """What a row's codes are multiplied with, as in ``storage.quantize``."""
    scale = tl.maximum(tl.div_rn(largest, 127.0), 1.1754943508222875e-38)
    return tl.where(is_finite, scale, float("nan"))


@triton.jit
def int8_codes(x, scale, is_finite):
    """Codes of numbers, as floats; ``scale`` has their shape."""
    # Adding this leaves no room for a fraction: rounded to the nearest, to even in between.
    steps = tl.div_rn(x, scale) + 12582912.0 - 12582912.0
    return tl.where(is_finite, tl.minimum(tl.maximum(steps, -127.0), 127.0), 0.0)


@triton.jit
def _load_row(ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CLIP: tl.constexpr):
    """A row, clamped and rounded as ``torch.clamp`` would, as fp32."""
    columns = tl.arange(0, BLOCK_D)
    x_D = tl.load(ptr + columns, mask=columns < HEAD_DIM, other=0.0).to(tl.float32)
    if CLIP is not None:
        x_D = tl.clamp(x_D, -CLIP, CLIP, propagate_nan=tl.PropagateNan.ALL).to(ptr.dtype.element_ty).to(tl.float32)
    return x_D


@triton.jit
def _as_stored(x_D, data_type: tl.constexpr, HAS_SCALE: tl.constexpr):
    """A row's codes, scale and what they read back as, fp32: ``storage.quantize``."""
    if HAS_SCALE:
        # Sizes in the order of their bits: one maximum, which does not pass over a NaN as that of floats would.
        bits = tl.max(x_D.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
        is_finite = bits < 0x7F800000
        scale = int8_scale(bits.to(tl.float32, bitcast=True), is_finite)
        codes_D = int8_codes(x_D, tl.zeros_like(x_D) + scale, is_finite)
        stored_D = codes_D * scale
    else:
        codes_D = x_D
        scale = 1.0
        stored_D = x_D.to(data_type).to(tl.float32)
    return codes_D.to(data_type), scale, stored_D


@triton.jit
def _write_row(
    x_D, data_ptr, scale_ptr, place, may_store, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SCALE: tl.constexpr
):
    """Put a row where it belongs."""
    columns = tl.arange(0, BLOCK_D)
    codes_D, scale, _ = _as_stored(x_D, data_ptr.dtype.element_ty, HAS_SCALE)
    if HAS_SCALE:
        tl.store(scale_ptr + place, scale, mask=may_store)
    tl.store(data_ptr + place * HEAD_DIM + columns, codes_D, mask=(columns < HEAD_DIM) & may_store)


@triton.jit
def _at_least(norm, ROUNDING: tl.constexpr, LEAST: tl.constexpr):
    """fp64 numbers no smaller than the true norms, as in ``model.reach``."""
    return norm * (1.0 + tl.full([], ROUNDING, tl.float64)) + tl.full([], LEAST, tl.float64)


@triton.jit
def _add_each(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _load_bounds(running_ptr, costs_ptr, start, num_columns, BLOCK_P: tl.constexpr):
    columns_P = start + tl.arange(0, BLOCK_P)
    is_column_P = columns_P < num_columns
    running_P = tl.load(running_ptr + columns_P, mask=is_column_P, other=0.0)
    return running_P, tl.load(costs_ptr + columns_P, mask=is_column_P, other=float("inf"))


@triton.jit
def _count_skipped(
    q_D, key_D, bounds, running_ptr, costs_ptr, num_columns,
    SCALE: tl.constexpr, LOG_EPSILON: tl.constexpr, ROUNDING: tl.constexpr, LEAST: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Prefixes of pages whose bound is at most epsilon, and the largest of these bounds; all of it in fp64.

    ``bounds`` are those of the first BLOCK_P columns.
    """
    scale = tl.full([], SCALE, tl.float64)
    q_square, key_square, product = tl.reduce((q_D * q_D, key_D * key_D, q_D * key_D), 0, _add_each)
    norm = _at_least(tl.sqrt(q_square), ROUNDING, LEAST) * tl.abs(scale)
    own_norm = _at_least(tl.sqrt(key_square), ROUNDING, LEAST)
    own = product * scale - tl.full([], ROUNDING, tl.float64) * norm * own_norm
    skipped_P = tl.zeros([BLOCK_P], tl.int32)
    nats_P = tl.full([BLOCK_P], float("-inf"), tl.float64)
    running_P, costs_P = bounds
    for start in range(0, num_columns, BLOCK_P):
        bound_P = norm * running_P + (costs_P - own)
        may_skip_P = bound_P <= tl.full([], LOG_EPSILON, tl.float64)  # what is NaN may not
        skipped_P += may_skip_P.to(tl.int32)
        nats_P = tl.maximum(nats_P, tl.where(may_skip_P, bound_P, float("-inf")))
        running_P, costs_P = _load_bounds(running_ptr, costs_ptr, start + BLOCK_P, num_columns, BLOCK_P)
    return tl.sum(skipped_P, 0), tl.max(nats_P, 0)


@triton.jit
def take_in_kernel(
    q_ptr, k_ptr, v_ptr, q_stride, k_stride, v_stride,
    k_data_ptr, k_scale_ptr, v_data_ptr, v_scale_ptr,
    table_ptr, num_keys_ptr, live_ptr, running_ptr, costs_ptr,
    queries_ptr, stored_ptr, first_ptr, nats_ptr,
    num_kv_heads, num_columns,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr, K_HAS_SCALE: tl.constexpr, V_HAS_SCALE: tl.constexpr, CLIP: tl.constexpr,
    SCALE: tl.constexpr, LOG_EPSILON: tl.constexpr, ROUNDING: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Of one key head of one text: one of its heads, its query and first page, or, the last one, its key and value.

    What takes the time is waiting for memory, so whatever can be is read before anything is worked out.
    """
    kv_head, text, member = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    row = text * num_kv_heads + kv_head
    columns = tl.arange(0, BLOCK_D)
    is_column = columns < HEAD_DIM
    if member == GROUP:
        last = tl.load(num_keys_ptr + text) - 1
        k_D = _load_row(k_ptr + text * k_stride + kv_head * HEAD_DIM, HEAD_DIM, BLOCK_D, CLIP)
        v_D = _load_row(v_ptr + text * v_stride + kv_head * HEAD_DIM, HEAD_DIM, BLOCK_D, CLIP)
        page = tl.load(table_ptr + row * num_columns + last // PAGE_TOKENS).to(tl.int64)
        place = page * PAGE_TOKENS + last % PAGE_TOKENS
        _write_row(k_D, k_data_ptr, k_scale_ptr, place, page >= 0, HEAD_DIM, BLOCK_D, K_HAS_SCALE)
        _write_row(v_D, v_data_ptr, v_scale_ptr, place, page >= 0, HEAD_DIM, BLOCK_D, V_HAS_SCALE)
    else:
        at = row * GROUP + member
        running_ptr += row * num_columns
        costs_ptr += at * num_columns
        bounds = _load_bounds(running_ptr, costs_ptr, 0, num_columns, BLOCK_P)
        live = tl.load(live_ptr + row)
        k_D = _load_row(k_ptr + text * k_stride + kv_head * HEAD_DIM, HEAD_DIM, BLOCK_D, CLIP)
        q_D = _load_row(q_ptr + text * q_stride + (kv_head * GROUP + member) * HEAD_DIM, HEAD_DIM, BLOCK_D, CLIP)
        if CLIP is not None:
            tl.store(queries_ptr + at * HEAD_DIM + columns, q_D.to(queries_ptr.dtype.element_ty), mask=is_column)
        _, _, key_D = _as_stored(k_D, k_data_ptr.dtype.element_ty, K_HAS_SCALE)
        if member == 0:
            tl.store(stored_ptr + row * HEAD_DIM + columns, key_D, mask=is_column)
        # Past the width a row that is not finite would read back as NaN too.
        key_D = tl.where(is_column, key_D, 0.0).to(tl.float64)
        skipped, nats = _count_skipped(
            q_D.to(tl.float64), key_D, bounds, running_ptr, costs_ptr, num_columns,
            SCALE, LOG_EPSILON, ROUNDING, LEAST, BLOCK_P,
        )  # fmt: skip
        # Of what was evicted is certified that it weighs at most epsilon.
        nats = tl.where(skipped < live, tl.full([], LOG_EPSILON, tl.float64), nats)
        tl.store(first_ptr + at, tl.maximum(skipped.to(tl.int64), live))
        tl.store(nats_ptr + at, nats)
