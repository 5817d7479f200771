"""Few rows on a CPU in C++ (native/quant_linear.cpp): codes are multiplied where they lie, fp32 sums, weights read once."""

import torch
from torch import Tensor

from epilogue.kernels.extension import native_module
from epilogue.kernels.quant_linear.packing import QuantWeight

_SCALE_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_UNIT_WORDS = 16


def has_native_groups(weight: QuantWeight) -> bool:
    """Whether groups lie in memory as the kernel wants them: a power of two of words of 32 bits, or units of 16, or all."""
    if weight.scales_OG.shape[1] == 1:
        return True
    words, rest = divmod(weight.group_size * weight.bits, 32)
    return rest == 0 and (words % _UNIT_WORDS == 0 or words in (1, 2, 4, 8))


def quant_linear_native(x_RI: Tensor, weight: QuantWeight, *, instructions: str = "") -> Tensor:
    """Like the op, for float32, bfloat16 and float16 rows on the CPU; products and sums are fp32 for all of them.

    ``instructions`` names an instruction set, the best one if empty. Memory: the rows once more.

    Raises:
        ValueError: groups that it does not run, or no such instruction set here.
    """
    if not has_native_groups(weight) or weight.scales_OG.dtype not in _SCALE_KINDS or x_RI.dtype == torch.float64:
        raise ValueError(
            f"wanted up to fp32 and groups of whole words, got {x_RI.dtype} and groups of {weight.group_size} "
            f"with scales in {weight.scales_OG.dtype}"
        )
    rows_RI = x_RI.float().contiguous()
    out_RO = torch.empty(len(rows_RI), weight.out_features)
    codes_OI, scales_OG, zeros_OG = (x.contiguous() for x in (weight.codes_OI, weight.scales_OG, weight.zeros_OG))
    order_I = None if weight.order_I is None else weight.order_I.contiguous()
    module = native_module()
    assert module is not None
    sizes = (
        weight.in_features, weight.out_features, scales_OG.shape[1], weight.group_size, weight.bits,
        _SCALE_KINDS[scales_OG.dtype],
    )  # fmt: skip
    parts = (
        codes_OI.data_ptr(), scales_OG.data_ptr(), zeros_OG.data_ptr(), 0 if order_I is None else order_I.data_ptr(),
        0, sizes,
    )  # fmt: skip
    module.quant_linear(
        parts, rows_RI.data_ptr(), len(rows_RI), out_RO.data_ptr(), torch.get_num_threads(), instructions
    )
    return out_RO.to(x_RI.dtype)
