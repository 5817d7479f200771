"""Causal ALiBi attention on an accelerator by FlexAttention: prefill and training, forward and backward.

The bias is fp32 arithmetic on positions inside the kernel.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from epilogue.kernels.attention.block_tables import BLOCK_TOKENS, BlockTables

_MOST_SHAPES = 64


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def attention_flex(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
    document_start_BT: Tensor | None = None,
) -> Tensor:
    """Attention in O(B*T*H*D) memory beyond its inputs. Compiles once per shape when training, else once.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    is_training = torch.is_grad_enabled() and q_BTHD.requires_grad
    block_mask, offset = _blocks(
        q_BTHD.shape[1],
        k_BSKD.shape[1],
        q_BTHD.device,
        first_key_HN,
        document_start_BT,
        for_backward=torch.is_grad_enabled() and any(x.requires_grad for x in (q_BTHD, k_BSKD, v_BSKD)),
    )

    def add_bias(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        # Each position becomes a number before they meet: a conversion for a row or a column, not for every pair. Both
        # are whole and exact in fp32, and so is their difference.
        return score + slopes_H[h] * (kv_idx.float() - (q_idx + offset).float())  # type: ignore[no-any-return]

    out_BHTD = _compiled_flex_attention(dynamic=not is_training)(
        *(x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD)),
        score_mod=add_bias,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q_BTHD.shape[2] != k_BSKD.shape[2],
        kernel_options=_kernel_options(q_BTHD.device),
    )
    return out_BHTD.transpose(1, 2)  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def _kernel_options(device: torch.device) -> dict[str, Any] | None:
    """Hopper's copy engine brings keys and values in: a reading is 15 % faster on an H200 (benchmarks/results)."""
    has_engine = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"fwd_USE_TMA": True} if has_engine else None


@lru_cache(maxsize=2)
def _compiled_flex_attention(*, dynamic: bool) -> Any:
    """Training repeats one shape, for which a kernel of its own pays; reading meets a new one with every chunk.

    Each shape counts, with documents and without, trained and evaluated, so a schedule of lengths goes beyond the limit
    of 8. What would run there instead holds all scores at once, hence no falling back either.
    """
    torch._dynamo.config.recompile_limit = max(_MOST_SHAPES, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=dynamic, fullgraph=True)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _blocks(
    num_queries: int,
    num_keys: int,
    device: torch.device,
    first_key_HN: Tensor | None,
    document_start_BT: Tensor | None = None,
    *,
    for_backward: bool = True,
) -> tuple[BlockMask, Tensor]:
    """The key blocks that every block of queries visits, and the first query's place.

    Only the way back asks which queries visit a block of keys: it takes a sort, the most of a mask's time.
    """
    if first_key_HN is None and document_start_BT is None:
        return _causal_blocks(num_queries, num_keys, device, for_backward=for_backward)
    tables = BlockTables.of(num_queries, num_keys, device, first_key_HN, document_start_BT)
    return _block_mask(num_queries, num_keys, tables, document_start_BT, for_backward)


@lru_cache(maxsize=32)
def _causal_blocks(
    num_queries: int, num_keys: int, device: torch.device, *, for_backward: bool = True
) -> tuple[BlockMask, Tensor]:
    return _block_mask(num_queries, num_keys, BlockTables.of(num_queries, num_keys, device), None, for_backward)


def _block_mask(
    num_queries: int, num_keys: int, tables: BlockTables, document_start_BT: Tensor | None, for_backward: bool
) -> tuple[BlockMask, Tensor]:
    """The tables as FlexAttention takes them.

    The first query's place is a tensor, not a number: a number would be compiled in, and every chunk of a book has
    another one. It is filled there: what is sent from the host waits for all that the device was given before.
    """
    shift = torch.full((), num_keys - num_queries, dtype=torch.int32, device=tables.full_BHRS.device)
    blocks = BlockMask.from_kv_blocks(
        tables.num_masked_BHR,
        tables.masked_BHRS,
        tables.num_full_BHR,
        tables.full_BHRS,
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=_mask(shift, document_start_BT),
        seq_lengths=(num_queries, num_keys),
        compute_q_blocks=for_backward,
    )
    return blocks, shift


def _mask(shift: Tensor, document_start_BT: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What one query sees where a block does not say."""

    def is_causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx <= q_idx + shift

    if document_start_BT is None:
        return is_causal

    def is_causal_in_document(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx <= q_idx + shift) & (kv_idx >= document_start_BT[b, q_idx])

    return is_causal_in_document
