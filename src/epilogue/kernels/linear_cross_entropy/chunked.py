"""Linear layer and cross-entropy chunk by chunk of rows: the [R, V] matrix of logits is never whole.

Gradients are made in the forward pass, while a chunk's logits are there: the backward pass would have to make them
again. The idea is that of Liger Kernel's fused linear cross-entropy (arXiv 2410.10989).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_cross_entropy_chunked(
    x_RC: Tensor,
    weight_VC: Tensor,
    targets_R: Tensor,
    *,
    factor: float,
    ignored: int,
    dtype: torch.dtype,
    chunk_rows: int,
) -> Tensor:
    """The mean as a scalar; products in ``dtype``, the rest in fp32 (fp64 for fp64 rows)."""
    if not torch.is_grad_enabled():  # inside the function only the inputs say whether a gradient is wanted
        x_RC, weight_VC = x_RC.detach(), weight_VC.detach()
    return _Chunked.apply(x_RC, weight_VC, targets_R, factor, ignored, dtype, chunk_rows)  # type: ignore[no-untyped-call, no-any-return]


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RC: Tensor,
        weight_VC: Tensor,
        targets_R: Tensor,
        factor: float,
        ignored: int,
        dtype: torch.dtype,
        chunk_rows: int,
    ) -> Tensor:
        wide = torch.float64 if x_RC.dtype == torch.float64 else torch.float32
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_RC = torch.empty_like(x_RC) if wants_x else None
        grad_VC = torch.zeros_like(weight_VC, dtype=wide) if wants_weight else None
        narrow_VC = weight_VC.to(dtype)
        total = torch.zeros((), dtype=wide, device=x_RC.device)
        with torch.autocast(x_RC.device.type, enabled=False):
            for start in range(0, len(x_RC), chunk_rows):
                rows = slice(start, start + chunk_rows)
                rows_RC = x_RC[rows].to(dtype)
                nats, slope_RV = _chunk(rows_RC, narrow_VC, targets_R[rows], factor, ignored, wide)
                total += nats
                if grad_RC is not None:
                    grad_RC[rows] = slope_RV @ narrow_VC
                if grad_VC is not None:
                    grad_VC += slope_RV.T @ rows_RC
        num_counted = (targets_R != ignored).sum()
        ctx.save_for_backward(grad_RC, grad_VC, num_counted)
        ctx.factor, ctx.weight_dtype = factor, weight_VC.dtype
        return total / num_counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        grad_RC, grad_VC, num_counted = ctx.saved_tensors
        scale = grad_out * (ctx.factor / num_counted)
        # In place: these are the function's own, and of a size that one would not want twice.
        of_x = None if grad_RC is None else grad_RC.mul_(scale)
        of_weight = None if grad_VC is None else grad_VC.mul_(scale).to(ctx.weight_dtype)
        return of_x, of_weight, None, None, None, None, None


def _chunk(
    rows_RC: Tensor, weight_VC: Tensor, targets_R: Tensor, factor: float, ignored: int, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Nats of these rows together, and softmax minus the target's 1, in the dtype of the rows."""
    logits_RV = (rows_RC @ weight_VC.T).to(wide) * factor
    is_counted_R = targets_R != ignored
    column_R1 = targets_R.where(is_counted_R, 0)[:, None]
    lse_R1 = logits_RV.logsumexp(1, keepdim=True)
    nats_R = (lse_R1 - logits_RV.gather(1, column_R1))[:, 0]
    slope_RV = logits_RV.sub_(lse_R1).exp_()
    slope_RV.scatter_add_(1, column_R1, torch.full_like(lse_R1, -1))
    slope_RV.masked_fill_(~is_counted_R[:, None], 0)
    return nats_R.where(is_counted_R, 0).sum(), slope_RV.to(rows_RC.dtype)
