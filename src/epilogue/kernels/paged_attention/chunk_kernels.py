# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernels of ``chunk.py``. Not typed, as those of ``split_kernels.py`` are not."""

import triton
import triton.language as tl


@triton.jit
def _read_page(
    data_ptr, scale_ptr, out_ptr, ids_ptr, ids_stride, num_tokens,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """The tokens of one page, as numbers; those of a page that is not there are zeros."""
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


# Of these numbers none is worth a kernel of its own: addresses are multiples of HEAD_DIM whatever they are.
@triton.jit(do_not_specialize=["ids_stride", "num_tokens"])
def read_pages_kernel(
    k_data_ptr, k_scale_ptr, v_data_ptr, v_scale_ptr, k_out_ptr, v_out_ptr, ids_ptr, ids_stride, num_tokens,
    PAGE_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    K_HAS_SCALE: tl.constexpr, V_HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """One page of a head: programs are columns of the table, heads, and keys or values."""
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
