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

MOST_ROWS = 16
"""With more rows dequantising is cheaper (docs/log.md)."""
_TILE_WEIGHTS = 1 << 21
_SCALE_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_UNIT_WORDS = 16


def quant_linear_native(x_RI: Tensor, weight: QuantWeight, *, instructions: str = "") -> Tensor:
    """Like the op, for float32, bfloat16 and float16 on the CPU.

    With few rows nothing is rounded but to fp32, or to 2^-23 of the largest of 128 inputs (64 for 8 bits); with many,
    weights are first rounded to the dtype of the rows. Memory: the rows once more, and with many rows a tile of 8 MiB.

    ``instructions`` names an instruction set, the best one if empty.

    Raises:
        ValueError: another dtype, or no such instruction set here.
    """
    if x_RI.dtype not in _SCALE_KINDS or weight.scales_OG.dtype not in _SCALE_KINDS:
        raise ValueError(f"wanted rows and scales in fp32, fp16 or bf16, got {x_RI.dtype} and {weight.scales_OG.dtype}")
    if len(x_RI) <= MOST_ROWS and takes_few_rows(weight):
        return _few_rows(x_RI, weight, instructions)
    return _many_rows(x_RI, weight, instructions)


def dequantize_native(weight: QuantWeight, rows: slice, *, out_OI: Tensor, instructions: str = "") -> Tensor:
    """``packing.dequantize`` of the outputs start to stop, the same bits, into the first rows of fp32 ``out_OI``."""
    return WeightParts(weight).widen(rows, out_OI, instructions)


class WeightParts:
    """What the extension wants to know of a weight and of fp32 biases. Valid for as long as this object holds them."""

    def __init__(self, weight: QuantWeight, bias_O: Tensor | None = None) -> None:
        scales_OG, order_I = weight.scales_OG.contiguous(), weight.order_I
        self._held = weight.codes_OI.contiguous(), scales_OG, weight.zeros_OG.contiguous()
        self._order_I = None if order_I is None else order_I.contiguous()
        self._bias_O = None if bias_O is None else bias_O.contiguous()
        sizes = (
            weight.in_features, weight.out_features, scales_OG.shape[1], weight.group_size, weight.bits,
            _SCALE_KINDS[scales_OG.dtype],
        )  # fmt: skip
        order = 0 if self._order_I is None else self._order_I.data_ptr()
        bias = 0 if self._bias_O is None else self._bias_O.data_ptr()
        self.addresses = (*(x.data_ptr() for x in self._held), order, bias, sizes)

    def widen(self, rows: slice, out_OI: Tensor, instructions: str) -> Tensor:
        """Outputs start to stop as fp32, in the first rows of ``out_OI``."""
        threads = torch.get_num_threads()
        _module().dequantise(self.addresses, rows.start, rows.stop, out_OI.data_ptr(), threads, instructions)
        return out_OI[: rows.stop - rows.start]


def _module() -> Any:
    module = native_module()
    assert module is not None
    return module


def takes_few_rows(weight: QuantWeight) -> bool:
    """Whether codes are multiplied where they lie: groups are 1, 2, 4 or 8 words of 32 bits, or units of 16, or all."""
    if weight.scales_OG.dtype not in _SCALE_KINDS:
        return False
    if weight.scales_OG.shape[1] == 1:
        return True
    words, rest = divmod(weight.group_size * weight.bits, 32)
    return rest == 0 and (words % _UNIT_WORDS == 0 or words in (1, 2, 4, 8))


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
        part_OI = parts.widen(rows, tile_OI, instructions)
        torch.mm(x_RI, part_OI.to(x_RI.dtype).T, out=out_RO[:, rows])
    return out_RO
