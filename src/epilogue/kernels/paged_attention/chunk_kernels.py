# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernels of ``chunk.py``. Not typed, as those of ``split_kernels.py`` are not."""

import triton
import triton.language as tl

from epilogue.kernels.paged_attention.take_in_kernels import int8_codes, int8_scale


@triton.jit
def _read_page(
    data_ptr, scale_ptr, out_ptr, ids_ptr, ids_stride, num_tokens,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """The tokens of one page that is looked at, as numbers; those of a page that is not there are zeros."""
    column, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows_W, columns_D = tl.arange(0, PAGE_TOKENS), tl.arange(0, BLOCK_D)
    page = tl.load(ids_ptr + head * ids_stride + column).to(tl.int64)
    token_W = column * PAGE_TOKENS + rows_W
    is_written_W = token_W < num_tokens
    is_read_W = is_written_W & (page >= 0)
    is_column_1D = (columns_D < HEAD_DIM)[None, :]
    place_W = page * PAGE_TOKENS + rows_W
    x_WD = tl.load(
        data_ptr + place_W[:, None] * HEAD_DIM + columns_D[None, :], mask=is_read_W[:, None] & is_column_1D, other=0.0
    ).to(tl.float32)
    if HAS_SCALE:
        x_WD = x_WD * tl.load(scale_ptr + place_W, mask=is_read_W, other=0.0)[:, None]
    at_W = head * num_tokens + token_W
    tl.store(
        out_ptr + at_W[:, None] * HEAD_DIM + columns_D[None, :],
        x_WD.to(out_ptr.dtype.element_ty),
        mask=is_written_W[:, None] & is_column_1D,
    )


# None of these is worth a kernel of its own, compiled in the middle of a book: a row begins at a multiple of HEAD_DIM
# whatever they are.
@triton.jit(do_not_specialize=["ids_stride", "num_tokens"], do_not_specialize_on_alignment=["ids_ptr", "first_ptr"])
def read_pages_kernel(
    k_data_ptr, k_scale_ptr, v_data_ptr, v_scale_ptr, k_out_ptr, v_out_ptr, ids_ptr, ids_stride, first_ptr, num_tokens,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    K_HAS_SCALE: tl.constexpr, V_HAS_SCALE: tl.constexpr, HAS_FIRST: tl.constexpr,
):  # fmt: skip
    """One page of a head: programs are columns of the table, heads, and keys or values."""
    if HAS_FIRST:  # noqa: SIM102 - only this one is decided when compiling
        if tl.program_id(0) < tl.load(first_ptr + tl.program_id(1)):
            return
    if tl.program_id(2) == 0:
        _read_page(
            k_data_ptr, k_scale_ptr, k_out_ptr, ids_ptr, ids_stride, num_tokens,
            PAGE_TOKENS, HEAD_DIM, BLOCK_D, K_HAS_SCALE,
        )  # fmt: skip
    else:
        _read_page(
            v_data_ptr, v_scale_ptr, v_out_ptr, ids_ptr, ids_stride, num_tokens,
            PAGE_TOKENS, HEAD_DIM, BLOCK_D, V_HAS_SCALE,
        )  # fmt: skip


@triton.jit
def _write_page(
    x_ptr, token_stride, head_stride, data_ptr, scale_ptr, ids_ptr, ids_stride, start, num_tokens,
    stored_ptr, norms_ptr,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    HAS_SCALE: tl.constexpr, IS_KEY: tl.constexpr,
):  # fmt: skip
    """The new tokens of one page, as ``storage.quantize`` has them; of keys what they read back as and their norm."""
    column, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns_D = tl.arange(0, BLOCK_D)
    is_column_1D = (columns_D < HEAD_DIM)[None, :]
    page = tl.load(ids_ptr + head * ids_stride + column).to(tl.int64)
    square_W = tl.zeros([BLOCK_W], tl.float64)
    num_nan_W = tl.zeros([BLOCK_W], tl.int32)
    for first in range(0, PAGE_TOKENS, BLOCK_W):
        rows_W = first + tl.arange(0, BLOCK_W)
        token_W = (column * PAGE_TOKENS + rows_W - start).to(tl.int64)
        is_new_W = (token_W >= 0) & (token_W < num_tokens)
        is_new_WD = is_new_W[:, None] & is_column_1D
        at_WD = token_W[:, None] * token_stride + head * head_stride + columns_D[None, :]
        x_WD = tl.load(x_ptr + at_WD, mask=is_new_WD, other=0.0).to(tl.float32)
        place_W = page * PAGE_TOKENS + rows_W
        if HAS_SCALE:
            size_WD = tl.abs(x_WD)
            # The maximum would pass over a NaN.
            is_finite_W = tl.sum((size_WD < float("inf")).to(tl.int32), 1) == BLOCK_D
            scale_W = int8_scale(tl.max(size_WD, 1), is_finite_W)
            codes_WD = int8_codes(x_WD, tl.zeros_like(x_WD) + scale_W[:, None], is_finite_W[:, None])
            tl.store(scale_ptr + place_W, scale_W, mask=is_new_W & (page >= 0))
            stored_WD = codes_WD * scale_W[:, None]
        else:
            codes_WD = x_WD
            stored_WD = x_WD.to(data_ptr.dtype.element_ty).to(tl.float32)
        tl.store(
            data_ptr + place_W[:, None] * HEAD_DIM + columns_D[None, :],
            codes_WD.to(data_ptr.dtype.element_ty),
            mask=is_new_WD & (page >= 0),
        )
        if IS_KEY:
            at_WD = (head * num_tokens + token_W)[:, None] * HEAD_DIM + columns_D[None, :]
            tl.store(stored_ptr + at_WD, stored_WD, mask=is_new_WD)
            # Past the width a row that is not finite would read back as NaN too.
            wide_WD = tl.where(is_column_1D, stored_WD, 0.0).to(tl.float64)
            row_W = tl.sum(wide_WD * wide_WD, 1)
            num_nan_W += (row_W != row_W).to(tl.int32)
            square_W = tl.maximum(square_W, row_W)
    if IS_KEY:
        # As ``pages.row_norms``: room for rounding, and up to the next number.
        norm = (tl.sqrt(tl.max(square_W, 0)) * tl.full([], 1.00000095367431640625, tl.float64)).to(tl.float32)
        next_norm = (norm.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
        norm = tl.where(norm < float("inf"), next_norm, norm)
        norm = tl.where(tl.sum(num_nan_W, 0) > 0, float("nan"), norm)
        tl.store(norms_ptr + head * tl.num_programs(0) + column, norm)


@triton.jit(do_not_specialize=["ids_stride", "start", "num_tokens"], do_not_specialize_on_alignment=["ids_ptr"])
def write_chunk_kernel(
    k_ptr, v_ptr, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    k_data_ptr, k_scale_ptr, v_data_ptr, v_scale_ptr, ids_ptr, ids_stride, start, num_tokens,
    stored_ptr, norms_ptr,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    K_HAS_SCALE: tl.constexpr, V_HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """One page of a head: programs are columns of the table, heads, and keys or values."""
    if tl.program_id(2) == 0:
        _write_page(
            k_ptr, k_token_stride, k_head_stride, k_data_ptr, k_scale_ptr, ids_ptr, ids_stride, start, num_tokens,
            stored_ptr, norms_ptr, PAGE_TOKENS, HEAD_DIM, BLOCK_D, BLOCK_W, K_HAS_SCALE, True,
        )  # fmt: skip
    else:
        _write_page(
            v_ptr, v_token_stride, v_head_stride, v_data_ptr, v_scale_ptr, ids_ptr, ids_stride, start, num_tokens,
            stored_ptr, norms_ptr, PAGE_TOKENS, HEAD_DIM, BLOCK_D, BLOCK_W, V_HAS_SCALE, False,
        )  # fmt: skip
