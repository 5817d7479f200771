"""PyTorch's own attention, and the rule of docs/numerics.md: at most twice its error against fp64."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.attention import TILE_TOKENS, attention
from epilogue.model import alibi_slopes

# Below this, in units of the last place of the largest element, two errors are alike. The fp64 entry also holds the
# error of the fp64 reference itself.
FLOOR_ULPS = {torch.bfloat16: 0.5, torch.float16: 0.5, torch.float32: 2, torch.float64: 16}


def sdpa(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
    document_start_BT: Tensor | None = None,
) -> Tensor:
    """PyTorch's fused attention under a materialised mask of the queries' dtype."""
    num_queries, num_keys = q_BTHD.shape[1], k_BSKD.shape[1]
    group = q_BTHD.shape[2] // k_BSKD.shape[2]
    distance_TS = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
    mask_HTS = (-slopes_H.cpu().double()[:, None, None] * distance_TS).masked_fill(distance_TS < 0, -math.inf)
    is_seen_BHTS = visible(num_queries, num_keys, first_key_HN, document_start_BT)
    mask_BHTS = mask_HTS.masked_fill(~is_seen_BHTS, -math.inf)
    k_BSHD, v_BSHD = (x.repeat_interleave(group, dim=2) for x in (k_BSKD, v_BSKD))
    out_BHTD = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q_BTHD, k_BSHD, v_BSHD)),
        attn_mask=mask_BHTS.to(device=q_BTHD.device, dtype=q_BTHD.dtype),
        scale=scale,
    )
    return out_BHTD.transpose(1, 2)


def visible(
    num_queries: int, num_keys: int, first_key_HN: Tensor | None = None, document_start_BT: Tensor | None = None
) -> Tensor:
    """The pairs that are causal, within a plan's reach and within one document, as a bool [B or 1, H or 1, T, S]."""
    key_S = torch.arange(num_keys)
    is_seen_BHTS = (key_S <= torch.arange(num_keys - num_queries, num_keys)[:, None])[None, None]
    if first_key_HN is not None:
        first_key_HT = first_key_HN.cpu().repeat_interleave(TILE_TOKENS, dim=1)[:, :num_queries]
        is_seen_BHTS = is_seen_BHTS & (key_S >= first_key_HT[..., None])
    if document_start_BT is not None:
        is_seen_BHTS = is_seen_BHTS & (key_S >= document_start_BT.cpu()[:, None, :, None])
    return is_seen_BHTS


def random_plan(num_queries: int, num_keys: int, heads: int) -> Tensor:
    """first_key_HN: any edges that a plan may have, those of 0 and of all older pages among them."""
    first_N = torch.arange(num_keys - num_queries, num_keys, TILE_TOKENS)
    share_HN = (torch.rand(heads, len(first_N)) * 1.5 - 0.25).clamp(0, 1)
    return (share_HN * (first_N // 128)).round().long() * 128


def random_documents(num_queries: int, num_keys: int, batch: int, *, mean_tokens: float) -> Tensor:
    """document_start_BT of sequences packed from their first key to their last."""
    begins_BS = torch.rand(batch, num_keys) < 1 / mean_tokens
    start_BS = torch.where(begins_BS, torch.arange(num_keys), 0).cummax(dim=1).values
    return start_BS[:, num_keys - num_queries :]


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
    **view: Tensor | None,
) -> None:
    """A backend's values and gradients obey the rule on these inputs, under this plan and among these documents."""
    slopes_H = alibi_slopes(inputs[0].shape[2]) if slopes_H is None else slopes_H
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    grad_out = torch.randn_like(inputs[0]) if grad_out is None else grad_out
    wide = [x.double() for x in inputs]
    options = {"scale": scale, **view}
    truths = with_gradients(attention, wide, grad_out.double(), slopes_H, backend="reference", **options)
    ours = with_gradients(attention, inputs, grad_out, slopes_H, backend=backend, **options)
    peers = with_gradients(sdpa, inputs, grad_out, slopes_H, **options)
    assert_within_twice_the_error(ours, peers, truths)
