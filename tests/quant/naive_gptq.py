"""GPTQ as it is defined: a column at a time, the whole inverse carried along. fp64, for small layers."""

import torch
from torch import Tensor


def naive_gptq(
    weight_OI: Tensor,
    moments_II: Tensor,
    *,
    bits: int,
    group: int,
    is_symmetric: bool,
    has_act_order: bool,
    damping: float,
) -> Tensor:
    """The dense weight that comes out, fp64, in the layer's own order."""
    inputs, most = weight_OI.shape[1], 2**bits - 1
    weight, moments = weight_OI.double().clone(), moments_II.double().clone()
    mean = moments.diagonal().mean()
    for i in range(inputs):
        if moments[i, i] == 0:
            moments[i, i] = mean
        moments[i, i] += damping * mean
    inverse = torch.linalg.inv(moments)
    order = torch.arange(inputs)
    if has_act_order:
        order = moments_II.diagonal().argsort(descending=True)
    out = torch.zeros_like(weight)
    left = list(order.tolist())
    for step, column in enumerate(order.tolist()):
        if step % group == 0:
            part = weight[:, order[step : step + group]]
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            if is_symmetric:
                scale, zero = 2 * torch.maximum(-low, high) / most, torch.full_like(low, (most + 1) / 2)
            else:
                scale = (high - low) / most
                zero = (-low / scale).round().clamp(1, most)
            scale = scale.half().double()
        code = ((weight[:, column] / scale).round() + zero).clamp(0, most)
        out[:, column] = scale * (code - zero)
        left.remove(column)
        loss = (weight[:, column] - out[:, column]) / inverse[column, column]
        for other in left:
            weight[:, other] -= loss * inverse[column, other]
        # The inverse of the moments of the columns that are left: one step of elimination.
        inverse = inverse - inverse[:, [column]] @ inverse[[column], :] / inverse[column, column]
    return out
