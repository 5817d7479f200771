"""Causal ALiBi attention on an accelerator by FlexAttention: prefill and training, forward and backward.

The bias is fp32 arithmetic on positions inside the kernel; the block mask is written down directly from the causal
geometry, without evaluating a mask over T by S.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from epilogue.kernels.attention.tiles import TILE_TOKENS

_BLOCK = 128


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def attention_flex(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
) -> Tensor:
    """Attention in O(B*T*H*D) memory beyond its inputs. Compiles once per shape when training, else once.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    block_mask, offset = _blocks(q_BTHD.shape[1], k_BSKD.shape[1], q_BTHD.device, first_key_HN)

    def add_bias(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + slopes_H[h] * (kv_idx - q_idx - offset)  # type: ignore[no-any-return]

    is_training = torch.is_grad_enabled() and q_BTHD.requires_grad
    out_BHTD = _compiled_flex_attention(dynamic=not is_training)(
        *(x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD)),
        score_mod=add_bias,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
    )
    return out_BHTD.transpose(1, 2)  # type: ignore[no-any-return]


@lru_cache(maxsize=2)
def _compiled_flex_attention(*, dynamic: bool) -> Any:
    """Training repeats one shape, for which a kernel of its own pays; reading meets a new one with every chunk."""
    return torch.compile(flex_attention, dynamic=dynamic)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _blocks(
    num_queries: int, num_keys: int, device: torch.device, first_key_HN: Tensor | None
) -> tuple[BlockMask, Tensor]:
    """The key blocks that every block of queries visits, and the first query's place."""
    if first_key_HN is None:
        return _causal_blocks(num_queries, num_keys, device)
    rows = -(-num_queries // _BLOCK)
    first_block_HR = (first_key_HN // _BLOCK).repeat_interleave(TILE_TOKENS // _BLOCK, dim=1)[:, :rows]
    return _block_mask(num_queries, num_keys, device, first_block_HR)


@lru_cache(maxsize=32)
def _causal_blocks(num_queries: int, num_keys: int, device: torch.device) -> tuple[BlockMask, Tensor]:
    rows = -(-num_queries // _BLOCK)
    return _block_mask(num_queries, num_keys, device, torch.zeros(1, rows, dtype=torch.int64, device=device))


def _block_mask(
    num_queries: int, num_keys: int, device: torch.device, first_block_HR: Tensor
) -> tuple[BlockMask, Tensor]:
    """For every block of queries: from its head's edge on, the key blocks all of it sees; then those on its diagonal.

    The first query's place is a tensor, not a number: a number would be compiled in, and every chunk of a book has
    another one.
    """
    offset = num_keys - num_queries
    rows, columns = first_block_HR.shape[1], -(-num_keys // _BLOCK)
    first_R = offset + _BLOCK * torch.arange(rows, device=device)
    last_R = torch.clamp(first_R + _BLOCK - 1, max=num_keys - 1)
    num_full_R = torch.div(first_R + 1, _BLOCK, rounding_mode="floor")
    num_seen_R = torch.div(last_R, _BLOCK, rounding_mode="floor") + 1
    column_S = torch.arange(columns, device=device)
    diagonal_HRS = (num_full_R[:, None] + column_S).clamp(max=columns - 1).expand(len(first_block_HR), -1, -1)
    full_HRS = (first_block_HR[..., None] + column_S).clamp(max=columns - 1)

    shift = torch.tensor(offset, dtype=torch.int32, device=device)

    def is_causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx <= q_idx + shift

    def table(x: Tensor) -> Tensor:
        return x.to(torch.int32)[None].contiguous()

    blocks = BlockMask.from_kv_blocks(
        table((num_seen_R - num_full_R).expand(len(first_block_HR), -1)),
        table(diagonal_HRS),
        table((num_full_R - first_block_HR).clamp(min=0)),
        table(full_HRS),
        BLOCK_SIZE=_BLOCK,
        mask_mod=is_causal,
        seq_lengths=(num_queries, num_keys),
    )
    return blocks, shift
