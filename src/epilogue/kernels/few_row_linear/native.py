"""The linear layer in C++ (native/few_row_linear.cpp): the cores share the weights, fp32 sums, weights read once."""

import torch
from torch import Tensor

from epilogue.kernels.extension import native_module

_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def few_row_linear_native(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None, *, instructions: str = "") -> Tensor:
    """Like the op, for fp32 or bf16 on the CPU, and fp32 rows on bf16 or finite fp16 weights.

    ``instructions`` names an instruction set, the best one if empty.

    Raises:
        ValueError: shapes or dtypes that do not fit, or no such instruction set here.
    """
    width_out, width_in = weight_FC.shape
    kinds = {torch.float32: set(_NUMBERS), torch.bfloat16: {torch.bfloat16}}
    if x.shape[-1] != width_in or weight_FC.dtype not in kinds.get(x.dtype, ()):
        raise ValueError(f"wanted x [..., {width_in}] for {weight_FC.dtype} weights, got {x.dtype} {list(x.shape)}")
    rows = x.float().contiguous()
    bias = None if bias_F is None else bias_F.float().contiguous()
    weight_FC = weight_FC.contiguous()
    out = torch.empty(*x.shape[:-1], width_out)
    module = native_module()
    assert module is not None
    module.few_row_linear(
        rows.data_ptr(), weight_FC.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
        out.numel() // width_out, width_in, width_out, _NUMBERS[weight_FC.dtype], torch.get_num_threads(),
        instructions,
    )  # fmt: skip
    return out.to(x.dtype)
