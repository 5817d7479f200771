"""Any number of rows on any device: dequantise a tile of outputs, multiply, go on to the next."""

import torch
from torch import Tensor

from epilogue.kernels.quant_linear.packing import QuantWeight, dequantize

# Weights of a tile. On the CPU what a core's cache holds; on a GPU enough to fill it.
_TILE_WEIGHTS = {"cpu": 1 << 20}
_TILE_WEIGHTS_ELSEWHERE = 1 << 25


def quant_linear_tiled(x_RI: Tensor, weight: QuantWeight) -> Tensor:
    """out_RO in the dtype of the inputs, to which the weights are rounded. Memory: a tile, some 12 bytes a weight."""
    if weight.order_I is not None:
        x_RI = x_RI[:, weight.order_I.long()]
    most = _TILE_WEIGHTS.get(x_RI.device.type, _TILE_WEIGHTS_ELSEWHERE)
    step = max(1, most // weight.in_features)
    tiles = [
        x_RI @ dequantize(weight, dtype=x_RI.dtype, rows=slice(start, start + step)).T
        for start in range(0, weight.out_features, step)
    ]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)
