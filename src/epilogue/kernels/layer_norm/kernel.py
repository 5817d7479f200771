# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernel of ``op.py``. Not typed: its arguments are Python objects before it is compiled, and none after."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def norm_kernel(
    x_ptr, term_ptr, sum_ptr, weight_ptr, bias_ptr, out_ptr, num_columns,
    EPS: tl.constexpr, HAS_TERM: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_C: tl.constexpr,
    ALLOWS_EARLY: tl.constexpr,
):  # fmt: skip
    """One row, to which a term's row may be added first: the sum is stored, and normed as it was stored."""
    if ALLOWS_EARLY:
        gdc_launch_dependents()
    columns = tl.arange(0, BLOCK_C)
    is_column = columns < num_columns
    at_C = tl.program_id(0).to(tl.int64) * num_columns + columns
    # All reads are under way before anything is stored or summed.
    gain_C = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    x_C = tl.load(x_ptr + at_C, mask=is_column, other=0.0).to(tl.float32)
    if HAS_TERM:
        x_C += tl.load(term_ptr + at_C, mask=is_column, other=0.0).to(tl.float32)
        sum_C = x_C.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at_C, sum_C, mask=is_column)
        x_C = sum_C.to(tl.float32)
    mean = tl.sum(x_C, 0) / num_columns
    x_C = tl.where(is_column, x_C - mean, 0.0)
    out_C = x_C * tl.rsqrt(tl.sum(x_C * x_C, 0) / num_columns + EPS)
    out_C *= gain_C
    if HAS_BIAS:
        out_C += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out_ptr + at_C, out_C.to(out_ptr.dtype.element_ty), mask=is_column)
