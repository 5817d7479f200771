"""A quantised weight as the C++ extension takes it, for whoever calls it: addresses, and whether it fits."""

import torch
from torch import Tensor

from epilogue.kernels.quant_linear.packing import QuantWeight

_SCALE_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_UNIT_WORDS = 16


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


def takes_few_rows(weight: QuantWeight) -> bool:
    """Whether codes are multiplied where they lie: groups are 1, 2, 4 or 8 words of 32 bits, or units of 16, or all."""
    if weight.scales_OG.dtype not in _SCALE_KINDS:
        return False
    if weight.scales_OG.shape[1] == 1:
        return True
    words, rest = divmod(weight.group_size * weight.bits, 32)
    return rest == 0 and (words % _UNIT_WORDS == 0 or words in (1, 2, 4, 8))
