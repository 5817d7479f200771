"""Random quantised weights, and what they stand for computed one number at a time."""

import torch
from torch import Tensor

from epilogue.kernels.quant_linear import QuantWeight, num_groups, pack_codes


def random_weight(
    outputs: int,
    inputs: int,
    *,
    bits: int = 4,
    group_size: int = 32,
    has_order: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> QuantWeight:
    group_size = min(group_size, inputs)
    groups = num_groups(inputs, group_size)
    codes_OI = torch.randint(2**bits, (outputs, inputs), dtype=torch.uint8)
    scales_OG = (torch.rand(outputs, groups) * 0.02 + 1e-4).to(scale_dtype)
    zeros_OG = torch.randint(1, 2**bits, (outputs, groups), dtype=torch.int16)
    order_I = torch.randperm(inputs, dtype=torch.int32) if has_order else None
    return QuantWeight(bits, group_size, pack_codes(codes_OI, bits), scales_OG, zeros_OG, order_I)


def one_by_one(weight: QuantWeight) -> Tensor:
    """fp64 weight_OI in the layer's own order, from the definition."""
    out = torch.zeros(weight.out_features, weight.in_features, dtype=torch.float64)
    per_byte = 8 // weight.bits
    for o in range(weight.out_features):
        for i in range(weight.in_features):
            byte = int(weight.codes_OI[o, i // per_byte])
            code = byte >> weight.bits * (i % per_byte) & 2**weight.bits - 1
            group = i // weight.group_size
            value = float(weight.scales_OG[o, group]) * (code - int(weight.zeros_OG[o, group]))
            out[o, i if weight.order_I is None else int(weight.order_I[i])] = value
    return out


def on_device(weight: QuantWeight, device: str) -> QuantWeight:
    order_I = None if weight.order_I is None else weight.order_I.to(device)
    codes_OI, scales_OG, zeros_OG = (x.to(device) for x in (weight.codes_OI, weight.scales_OG, weight.zeros_OG))
    return QuantWeight(weight.bits, weight.group_size, codes_OI, scales_OG, zeros_OG, order_I)
