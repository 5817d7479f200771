"""Any number of rows on a CPU, in C++ (native/quant_linear.cpp).

Few rows are multiplied by the codes where they lie, and weights are read once: in fp32, or where the processor
multiplies bytes (VNNI) with inputs as whole numbers of 24 bits (native/quant_dots.inc). Neither is less exact than
PyTorch. For many rows a tile of outputs becomes floats, and PyTorch multiplies: its product of many rows is bound by
arithmetic and knows the caches.
"""

from typing import Any

import torch
from torch import Tensor

from epilogue.kernels.extension import native_module
from epilogue.kernels.quant_linear.packing import QuantWeight
from epilogue.kernels.quant_linear.parts import WeightParts, takes_few_rows

MOST_ROWS = 16
"""With more rows dequantising is cheaper (docs/log.md)."""
_TILE_WEIGHTS = 1 << 21
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def quant_linear_native(x_RI: Tensor, weight: QuantWeight, *, instructions: str = "") -> Tensor:
    """Like the op, for float32, bfloat16 and float16 on the CPU.

    With few rows nothing is rounded but to fp32, or to 2^-23 of the largest of 128 inputs (64 for 8 bits); with many,
    weights are first rounded to the dtype of the rows. Memory: the rows once more, and with many rows a tile of 8 MiB.

    ``instructions`` names an instruction set, the best one if empty.

    Raises:
        ValueError: another dtype, or no such instruction set here.
    """
    if x_RI.dtype not in _DTYPES or weight.scales_OG.dtype not in _DTYPES:
        raise ValueError(f"wanted rows and scales in fp32, fp16 or bf16, got {x_RI.dtype} and {weight.scales_OG.dtype}")
    if len(x_RI) <= MOST_ROWS and takes_few_rows(weight):
        return _few_rows(x_RI, weight, instructions)
    return _many_rows(x_RI, weight, instructions)


def dequantize_native(weight: QuantWeight, rows: slice, *, out_OI: Tensor, instructions: str = "") -> Tensor:
    """``packing.dequantize`` of the outputs start to stop, the same bits, into the first rows of fp32 ``out_OI``."""
    return _widen(WeightParts(weight), rows, out_OI, instructions)


def _module() -> Any:
    module = native_module()
    assert module is not None
    return module


def _widen(parts: WeightParts, rows: slice, out_OI: Tensor, instructions: str) -> Tensor:
    """Outputs start to stop as fp32, in the first rows of ``out_OI``."""
    threads = torch.get_num_threads()
    _module().dequantise(parts.addresses, rows.start, rows.stop, out_OI.data_ptr(), threads, instructions)
    return out_OI[: rows.stop - rows.start]


def _few_rows(x_RI: Tensor, weight: QuantWeight, instructions: str) -> Tensor:
    wide_RI = x_RI.float().contiguous()
    out_RO = torch.empty(len(wide_RI), weight.out_features)
    parts = WeightParts(weight)
    _module().quant_linear(
        parts.addresses, wide_RI.data_ptr(), len(wide_RI), out_RO.data_ptr(), torch.get_num_threads(), instructions
    )
    return out_RO.to(x_RI.dtype)


def _many_rows(x_RI: Tensor, weight: QuantWeight, instructions: str) -> Tensor:
    if weight.order_I is not None:
        x_RI = x_RI[:, weight.order_I.long()]
    out_RO = x_RI.new_empty(len(x_RI), weight.out_features)
    step = min(max(1, _TILE_WEIGHTS // weight.in_features), weight.out_features)
    # One tile for all: fresh memory costs more than filling it.
    tile_OI, parts = torch.empty(step, weight.in_features), WeightParts(weight)
    for start in range(0, weight.out_features, step):
        rows = slice(start, min(start + step, weight.out_features))
        part_OI = _widen(parts, rows, tile_OI, instructions)
        torch.mm(x_RI, part_OI.to(x_RI.dtype).T, out=out_RO[:, rows])
    return out_RO
