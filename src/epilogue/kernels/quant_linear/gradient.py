"""The way back through a frozen quantised weight: dequantised tile by tile once more, so that nothing of it is kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from epilogue.kernels.quant_linear.packing import QuantWeight, dequantize

_TILE_WEIGHTS = {"cpu": 1 << 20}
_TILE_WEIGHTS_ELSEWHERE = 1 << 25


def through_frozen(run: Callable[[Tensor, QuantWeight], Tensor], x_RI: Tensor, weight: QuantWeight) -> Tensor:
    """What ``run`` gives, differentiable in x_RI, once; of the weight nothing learns and nothing dense is kept."""
    return _Frozen.apply(x_RI, run, weight)  # type: ignore[no-untyped-call, no-any-return]


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, run: Callable[[Tensor, QuantWeight], Tensor], weight: QuantWeight) -> Tensor:
        ctx.weight = weight
        return run(x_RI, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> Any:
        return _gradient(grad_RO, ctx.weight), None, None


def _gradient(grad_RO: Tensor, weight: QuantWeight) -> Tensor:
    """grad_RO @ weight_OI; weights are rounded to its dtype, sums over tiles are fp32 (fp64 for fp64)."""
    wide = torch.float64 if grad_RO.dtype == torch.float64 else torch.float32
    step = max(1, _TILE_WEIGHTS.get(grad_RO.device.type, _TILE_WEIGHTS_ELSEWHERE) // weight.in_features)
    total_RI = torch.zeros(len(grad_RO), weight.in_features, dtype=wide, device=grad_RO.device)
    for start in range(0, weight.out_features, step):
        rows = slice(start, start + step)
        total_RI += grad_RO[:, rows] @ dequantize(weight, dtype=grad_RO.dtype, rows=rows)
    stored_RI = total_RI.to(grad_RO.dtype)
    return stored_RI if weight.order_I is None else stored_RI[:, weight.order_I.long().argsort()]
