# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernel of ``packed.py``. R counts rows, O outputs, and I the inputs of a step.

Kernels are not typed: their arguments are Python objects before they are compiled, and none after.
"""

import triton
import triton.language as tl


@triton.jit
def _numbers(codes_OI, scale_ptr, zero_ptr, groups_at_OI, mask_OI, dtype: tl.constexpr):
    """What codes stand for: fp32 products, rounded to the dtype once."""
    scale_OI = tl.load(scale_ptr + groups_at_OI, mask=mask_OI, other=0.0).to(tl.float32)
    zero_OI = tl.load(zero_ptr + groups_at_OI, mask=mask_OI, other=0).to(tl.float32)
    return ((codes_OI.to(tl.float32) - zero_OI) * scale_OI).to(dtype)


@triton.jit
def packed_kernel(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, out_ptr, num_rows, outputs, inputs, groups,
    GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_BYTES: tl.constexpr,
):  # fmt: skip
    """One program: all rows, BLOCK_O outputs. Even and odd inputs are multiplied apart, so that nothing interleaves."""
    rows_R = tl.arange(0, BLOCK_R)
    outputs_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_row_R, is_output_O = rows_R < num_rows, outputs_O < outputs
    per_byte: tl.constexpr = 8 // BITS
    num_bytes = inputs // per_byte
    total_RO = tl.zeros([BLOCK_R, BLOCK_O], tl.float32)
    for start in range(0, num_bytes, BLOCK_BYTES):
        bytes_I = start + tl.arange(0, BLOCK_BYTES)
        mask_OI = is_output_O[:, None] & (bytes_I < num_bytes)[None, :]
        mask_RI = is_row_R[:, None] & (bytes_I < num_bytes)[None, :]
        codes_at_OI = outputs_O.to(tl.int64)[:, None] * num_bytes + bytes_I[None, :]
        codes_OI = tl.load(codes_ptr + codes_at_OI, mask=mask_OI, other=0).to(tl.int32)
        for place in tl.static_range(per_byte):
            inputs_I = bytes_I * per_byte + place
            x_RI = tl.load(x_ptr + rows_R[:, None] * inputs + inputs_I[None, :], mask=mask_RI, other=0.0)
            groups_at_OI = outputs_O[:, None] * groups + (inputs_I // GROUP)[None, :]
            part_OI = (codes_OI >> (BITS * place)) & ((1 << BITS) - 1)
            weight_OI = _numbers(part_OI, scale_ptr, zero_ptr, groups_at_OI, mask_OI, x_RI.dtype)
            total_RO += tl.dot(x_RI, tl.trans(weight_OI), input_precision="ieee")
    out_at_RO = rows_R[:, None] * outputs + outputs_O[None, :]
    tl.store(out_ptr + out_at_RO, total_RO, mask=is_row_R[:, None] & is_output_O[None, :])
