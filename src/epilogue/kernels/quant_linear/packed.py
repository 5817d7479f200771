"""Few rows on a GPU: codes go to the multiprocessor packed and become numbers there, once for all rows."""

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from epilogue.kernels.quant_linear.packed_kernels import packed_kernel
from epilogue.kernels.quant_linear.packing import QuantWeight

_BLOCK_OUTPUTS = 32
_BLOCK_BYTES = 64


def quant_linear_packed(x_RI: Tensor, weight: QuantWeight) -> Tensor:
    """out_RO in the dtype of the inputs, sums in fp32. For at most 64 rows; more would fill no registers more.

    Scales and zero points are read once an input and not once a group: they are in the cache by then.
    """
    dtype, (num_rows, inputs) = x_RI.dtype, x_RI.shape
    x_RI = x_RI if weight.order_I is None else x_RI[:, weight.order_I.long()]
    # Triton's interpreter, which alone brings this file to the CPU, multiplies bf16 as if it were integers.
    x_RI = (x_RI if x_RI.is_cuda else x_RI.float()).contiguous()
    out_RO = torch.empty(num_rows, weight.out_features, dtype=torch.float32, device=x_RI.device)
    packed_kernel[(triton.cdiv(weight.out_features, _BLOCK_OUTPUTS),)](
        x_RI, weight.codes_OI.contiguous(), weight.scales_OG.contiguous(), weight.zeros_OG.contiguous(), out_RO,
        num_rows, weight.out_features, inputs, weight.scales_OG.shape[1],
        GROUP=weight.group_size, BITS=weight.bits,
        BLOCK_R=max(16, triton.next_power_of_2(num_rows)), BLOCK_O=_BLOCK_OUTPUTS, BLOCK_BYTES=_BLOCK_BYTES,
    )  # fmt: skip
    return out_RO.to(dtype)
