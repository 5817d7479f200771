"""Causal ALiBi attention in its plainest form: the meaning of the operation and the oracle of every backend."""

import torch
from torch import Tensor

from epilogue.kernels.attention.tiles import TILE_TOKENS


def attention_reference(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
    document_start_BT: Tensor | None = None,
) -> Tensor:
    """Attention with the whole score matrix in memory: O(B*H*T*S), so for tests and a few queries at a time.

    Computes in fp32, or in fp64 when the queries are fp64. Differentiable.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    dtype = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    num_queries, num_heads = q_BTHD.shape[1:3]
    num_keys, num_kv_heads = k_BSKD.shape[1:3]
    group = num_heads // num_kv_heads
    k_BSHD = k_BSKD.to(dtype).repeat_interleave(group, dim=2)
    v_BSHD = v_BSKD.to(dtype).repeat_interleave(group, dim=2)

    positions_S = torch.arange(num_keys, device=q_BTHD.device)
    distance_TS = positions_S[num_keys - num_queries :, None] - positions_S[None, :]
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD.to(dtype), k_BSHD) * scale
    scores_BHTS = scores_BHTS - slopes_H.to(dtype)[:, None, None] * distance_TS
    scores_BHTS = scores_BHTS.masked_fill(distance_TS < 0, -torch.inf)
    if first_key_HN is not None:
        first_key_HT = first_key_HN.repeat_interleave(TILE_TOKENS, dim=1)[:, :num_queries]
        scores_BHTS = scores_BHTS.masked_fill(positions_S < first_key_HT[..., None], -torch.inf)
    if document_start_BT is not None:
        scores_BHTS = scores_BHTS.masked_fill(positions_S < document_start_BT[:, None, :, None], -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores_BHTS.softmax(dim=-1), v_BSHD).to(q_BTHD.dtype)
