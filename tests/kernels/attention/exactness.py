"""PyTorch's own attention, and the rule of docs/numerics.md: at most twice its error against fp64."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.attention import attention
from epilogue.model import alibi_slopes

# Below this, in units of the last place of the largest element, two errors are alike. The fp64 entry also holds the
# error of the fp64 reference itself.
FLOOR_ULPS = {torch.bfloat16: 0.5, torch.float16: 0.5, torch.float32: 2, torch.float64: 16}


def sdpa(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, slopes_H: Tensor, *, scale: float) -> Tensor:
    """PyTorch's fused attention under a materialised mask of the queries' dtype."""
    num_queries, num_keys = q_BTHD.shape[1], k_BSKD.shape[1]
    group = q_BTHD.shape[2] // k_BSKD.shape[2]
    distance_TS = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    mask_HTS = (-slopes_H.cpu().double()[:, None, None] * distance_TS).masked_fill(distance_TS < 0, -math.inf)
    k_BSHD, v_BSHD = (x.repeat_interleave(group, dim=2) for x in (k_BSKD, v_BSKD))
    out_BHTD = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q_BTHD, k_BSHD, v_BSHD)),
        attn_mask=mask_HTS[None].to(device=q_BTHD.device, dtype=q_BTHD.dtype),
        scale=scale,
    )
    return out_BHTD.transpose(1, 2)


def random_inputs(
    num_queries: int,
    num_keys: int,
    *,
    heads: int = 3,
    kv_heads: int | None = None,
    head_dim: int = 16,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """q_BTHD, k_BSKD, v_BSKD."""
    kv_shape = (batch, num_keys, kv_heads or heads, head_dim)
    q_BTHD = torch.randn(batch, num_queries, heads, head_dim).to(dtype)
    return q_BTHD, torch.randn(kv_shape).to(dtype), torch.randn(kv_shape).to(dtype)


def with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_out: Tensor, *args: Any, **kwargs: Any
) -> list[Tensor]:
    """The output, and the gradients of the inputs; strides are kept."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, *args, **kwargs)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def assert_within_twice_the_error(ours: Sequence[Tensor], peers: Sequence[Tensor], truths: Sequence[Tensor]) -> None:
    """Largest and mean square error of every tensor, against its fp64 truth, at most twice the peer's."""
    for name, our, peer, truth in zip(("out", "dq", "dk", "dv"), ours, peers, truths, strict=False):
        assert our.dtype == peer.dtype
        assert our.shape == truth.shape
        assert our.isfinite().all(), f"{name} is not finite"
        floor = FLOOR_ULPS[our.dtype] * torch.finfo(our.dtype).eps * truth.abs().max().item()
        our_error, peer_error = (x.double() - truth for x in (our, peer))
        for measure in (lambda x: x.abs().max().item(), lambda x: x.square().mean().sqrt().item()):
            limit = 2 * measure(peer_error) + floor
            assert measure(our_error) <= limit, f"{name}: {measure(our_error):.1e}, allowed {limit:.1e}"


def assert_as_exact_as_sdpa(
    inputs: Sequence[Tensor],
    slopes_H: Tensor | None = None,
    *,
    scale: float | None = None,
    backend: Any = "cpu",
    grad_out: Tensor | None = None,
) -> None:
    """A backend's values and gradients obey the rule on these inputs."""
    slopes_H = alibi_slopes(inputs[0].shape[2]) if slopes_H is None else slopes_H
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    grad_out = torch.randn_like(inputs[0]) if grad_out is None else grad_out
    wide = [x.double() for x in inputs]
    options = {"scale": scale}
    truths = with_gradients(attention, wide, grad_out.double(), slopes_H, backend="reference", **options)
    ours = with_gradients(attention, inputs, grad_out, slopes_H, backend=backend, **options)
    peers = with_gradients(sdpa, inputs, grad_out, slopes_H, **options)
    assert_within_twice_the_error(ours, peers, truths)
