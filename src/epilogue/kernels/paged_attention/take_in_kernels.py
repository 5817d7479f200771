# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernel of ``take_in.py``. Not typed, as those of ``split_kernels.py`` are not."""

import triton
import triton.language as tl


@triton.jit
def _store_row(
    x_D, data_ptr, scale_ptr, place, may_store, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SCALE: tl.constexpr
):
    """Put a row where it belongs, as ``storage.quantize`` would; what it reads back as, fp32."""
    columns = tl.arange(0, BLOCK_D)
    if HAS_SCALE:
        size_D = tl.abs(x_D)
        # The maximum would pass over a NaN.
        is_finite = tl.sum((size_D < float("inf")).to(tl.int32), 0) == BLOCK_D
        scale = tl.maximum(tl.div_rn(tl.max(size_D, 0), 127.0), 1.1754943508222875e-38)
        scale = tl.where(is_finite, scale, float("nan"))
        # Adding this leaves no room for a fraction: rounded to the nearest, to even in between.
        steps_D = tl.div_rn(x_D, tl.zeros_like(x_D) + scale) + 12582912.0 - 12582912.0
        codes_D = tl.where(is_finite, tl.minimum(tl.maximum(steps_D, -127.0), 127.0), 0.0)
        tl.store(scale_ptr + place, scale, mask=may_store)
        stored_D = codes_D * scale
    else:
        codes_D = x_D
        stored_D = x_D.to(data_ptr.dtype.element_ty).to(tl.float32)
    codes_D = codes_D.to(data_ptr.dtype.element_ty)
    tl.store(data_ptr + place * HEAD_DIM + columns, codes_D, mask=(columns < HEAD_DIM) & may_store)
    return stored_D


@triton.jit
def _at_least(norm, ROUNDING: tl.constexpr, LEAST: tl.constexpr):
    return norm * (1.0 + tl.full([], ROUNDING, tl.float64)) + tl.full([], LEAST, tl.float64)


@triton.jit
def _count_skipped(
    q_D, key_D, running_ptr, costs_ptr, num_columns,
    SCALE: tl.constexpr, LOG_EPSILON: tl.constexpr, ROUNDING: tl.constexpr, LEAST: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Prefixes of pages whose bound is at most epsilon, and the largest of these bounds; all of it in fp64."""
    scale = tl.full([], SCALE, tl.float64)
    norm = _at_least(tl.sqrt(tl.sum(q_D * q_D, 0)), ROUNDING, LEAST) * tl.abs(scale)
    own_norm = _at_least(tl.sqrt(tl.sum(key_D * key_D, 0)), ROUNDING, LEAST)
    own = tl.sum(q_D * key_D, 0) * scale - tl.full([], ROUNDING, tl.float64) * norm * own_norm
    skipped_P = tl.zeros([BLOCK_P], tl.int32)
    nats_P = tl.full([BLOCK_P], float("-inf"), tl.float64)
    for start in range(0, num_columns, BLOCK_P):
        columns_P = start + tl.arange(0, BLOCK_P)
        is_column_P = columns_P < num_columns
        running_P = tl.load(running_ptr + columns_P, mask=is_column_P, other=0.0)
        costs_P = tl.load(costs_ptr + columns_P, mask=is_column_P, other=float("inf"))
        bound_P = norm * running_P + (costs_P - own)
        may_skip_P = bound_P <= tl.full([], LOG_EPSILON, tl.float64)  # what is NaN may not
        skipped_P += may_skip_P.to(tl.int32)
        nats_P = tl.maximum(nats_P, tl.where(may_skip_P, bound_P, float("-inf")))
    return tl.sum(skipped_P, 0), tl.max(nats_P, 0)


@triton.jit
def take_in_kernel(
    q_ptr, k_ptr, v_ptr, q_stride, k_stride, v_stride,
    k_data_ptr, k_scale_ptr, v_data_ptr, v_scale_ptr,
    table_ptr, num_keys_ptr, live_ptr, running_ptr, costs_ptr,
    stored_ptr, first_ptr, nats_ptr,
    num_kv_heads, num_columns,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr, K_HAS_SCALE: tl.constexpr, V_HAS_SCALE: tl.constexpr,
    SCALE: tl.constexpr, LOG_EPSILON: tl.constexpr, ROUNDING: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """One key head of one text: its new key and value, and the first page of each of its heads."""
    kv_head, text = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = text * num_kv_heads + kv_head
    columns = tl.arange(0, BLOCK_D)
    is_column = columns < HEAD_DIM
    last = tl.load(num_keys_ptr + text) - 1
    page = tl.load(table_ptr + row * num_columns + last // PAGE_TOKENS).to(tl.int64)
    place = page * PAGE_TOKENS + last % PAGE_TOKENS

    at_D = kv_head * HEAD_DIM + columns
    k_D = tl.load(k_ptr + text * k_stride + at_D, mask=is_column, other=0.0).to(tl.float32)
    v_D = tl.load(v_ptr + text * v_stride + at_D, mask=is_column, other=0.0).to(tl.float32)
    key_D = _store_row(k_D, k_data_ptr, k_scale_ptr, place, page >= 0, HEAD_DIM, BLOCK_D, K_HAS_SCALE)
    _store_row(v_D, v_data_ptr, v_scale_ptr, place, page >= 0, HEAD_DIM, BLOCK_D, V_HAS_SCALE)
    tl.store(stored_ptr + row * HEAD_DIM + columns, key_D, mask=is_column)

    live = tl.load(live_ptr + row)
    # Past the width a row that is not finite would read back as NaN too.
    key_D = tl.where(is_column, key_D, 0.0).to(tl.float64)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_D = tl.load(q_ptr + text * q_stride + head * HEAD_DIM + columns, mask=is_column, other=0.0)
        at = row * GROUP + member
        skipped, nats = _count_skipped(
            q_D.to(tl.float64), key_D, running_ptr + row * num_columns, costs_ptr + at * num_columns, num_columns,
            SCALE, LOG_EPSILON, ROUNDING, LEAST, BLOCK_P,
        )  # fmt: skip
        # Of what was evicted is certified that it weighs at most epsilon.
        nats = tl.where(skipped < live, tl.full([], LOG_EPSILON, tl.float64), nats)
        tl.store(first_ptr + at, tl.maximum(skipped.to(tl.int64), live))
        tl.store(nats_ptr + at, nats)
