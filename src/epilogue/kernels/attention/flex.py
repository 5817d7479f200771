"""Causal ALiBi attention on an accelerator by FlexAttention: prefill and training, forward and backward.

The bias is fp32 arithmetic on positions inside the kernel; the block mask is written down directly from the causal
geometry, without evaluating a mask over T by S.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_BLOCK = 128


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def attention_flex(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, slopes_H: Tensor, *, scale: float) -> Tensor:
    """Attention in O(B*T*H*D) memory beyond its inputs. Compiles once per shape when training, else once.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    block_mask, offset = _causal_blocks(q_BTHD.shape[1], k_BSKD.shape[1], q_BTHD.device)

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
@lru_cache(maxsize=32)
def _causal_blocks(num_queries: int, num_keys: int, device: torch.device) -> tuple[BlockMask, Tensor]:
    """For every tile of queries, the key blocks all of it sees and those on its diagonal; and the first query's place.

    That place is a tensor, not a number: a number would be compiled in, and every chunk of a book has another one.
    """
    offset = num_keys - num_queries
    rows = -(-num_queries // _BLOCK)
    columns = -(-num_keys // _BLOCK)
    first_R = offset + _BLOCK * torch.arange(rows, device=device)
    last_R = torch.clamp(first_R + _BLOCK - 1, max=num_keys - 1)
    num_full_R = torch.div(first_R + 1, _BLOCK, rounding_mode="floor")
    num_seen_R = torch.div(last_R, _BLOCK, rounding_mode="floor") + 1
    columns_R = torch.arange(columns, device=device).expand(rows, columns)
    on_diagonal_R = (num_full_R[:, None] + columns_R).clamp(max=columns - 1)

    shift = torch.tensor(offset, dtype=torch.int32, device=device)

    def is_causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx <= q_idx + shift

    def table(x: Tensor) -> Tensor:
        return x.to(torch.int32)[None, None].contiguous()

    blocks = BlockMask.from_kv_blocks(
        table(num_seen_R - num_full_R),
        table(on_diagonal_R),
        table(num_full_R),
        table(columns_R),
        BLOCK_SIZE=_BLOCK,
        mask_mod=is_causal,
        seq_lengths=(num_queries, num_keys),
    )
    return blocks, shift
