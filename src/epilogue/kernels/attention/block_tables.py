"""Which blocks of keys every block of queries visits: written down from the causal geometry, a plan and documents,
without looking at T by S pairs.
"""

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from epilogue.kernels.attention.tiles import TILE_TOKENS

BLOCK_TOKENS = 128


@dataclass(frozen=True)
class BlockTables:
    """For every block of queries the key blocks all of it sees, and those where a mask decides pair by pair.

    All int32 and contiguous, of R rows of BLOCK_TOKENS queries; H or B may be 1, for all. Of a row of ``masked`` and
    ``full`` only as many entries count as ``num_masked`` and ``num_full`` say, and those ascend.
    """

    num_masked_BHR: Tensor
    masked_BHRS: Tensor
    num_full_BHR: Tensor
    full_BHRS: Tensor

    @classmethod
    def of(
        cls,
        num_queries: int,
        num_keys: int,
        device: torch.device,
        first_key_HN: Tensor | None = None,
        document_start_BT: Tensor | None = None,
    ) -> "BlockTables":
        """Of the last queries of so many keys, under a plan and among documents (``attention``).

        On a GPU one launch, without documents: a reading asks for them in every layer of every chunk.
        """
        if device.type == "cuda" and document_start_BT is None:
            return write_down_by_kernel(num_queries, num_keys, device, first_key_HN)
        rows = -(-num_queries // BLOCK_TOKENS)
        first_block_HR = torch.zeros(1, rows, dtype=torch.int64, device=device)
        if first_key_HN is not None:
            in_tile = TILE_TOKENS // BLOCK_TOKENS
            first_block_HR = (first_key_HN // BLOCK_TOKENS).repeat_interleave(in_tile, dim=1)[:, :rows]
        return _write_down(num_queries, num_keys, first_block_HR[None], document_start_BT)

    def of_heads(self, heads: slice) -> "BlockTables":
        """Those of some heads; themselves where all heads share them."""
        if self.num_full_BHR.shape[1] == 1:
            return self
        tables = (self.num_masked_BHR, self.masked_BHRS, self.num_full_BHR, self.full_BHRS)
        return BlockTables(*(table[:, heads] for table in tables))


def write_down_by_kernel(
    num_queries: int, num_keys: int, device: torch.device, first_key_HN: Tensor | None
) -> BlockTables:
    """What ``BlockTables.of`` gives without documents, by Triton on a GPU or interpreted."""
    # Triton comes in with the first call: a machine without an accelerator may lack it.
    kernel = import_module("epilogue.kernels.attention.block_tables_kernel").block_tables_kernel
    rows, columns = -(-num_queries // BLOCK_TOKENS), -(-num_keys // BLOCK_TOKENS)
    heads = 1 if first_key_HN is None else len(first_key_HN)

    def table(*shape: int) -> Tensor:
        return torch.empty((1, heads, *shape), dtype=torch.int32, device=device)

    tables = BlockTables(table(rows), table(rows, columns), table(rows), table(rows, columns))
    first = tables.full_BHRS if first_key_HN is None else first_key_HN.contiguous()
    kernel[(rows, heads)](
        first, first.stride(0), tables.num_masked_BHR, tables.masked_BHRS, tables.num_full_BHR, tables.full_BHRS,
        num_queries, num_keys, columns,
        HAS_FIRST=first_key_HN is not None, BLOCK_TOKENS=BLOCK_TOKENS, TILE_TOKENS=TILE_TOKENS, BLOCK_S=1024,
        num_warps=4,
    )  # fmt: skip
    return tables


def _write_down(
    num_queries: int, num_keys: int, first_block_BHR: Tensor, document_start_BT: Tensor | None
) -> BlockTables:
    """From left to right: blocks where documents of these queries begin (masked), blocks all see, blocks on the
    diagonal (masked).
    """
    device, offset = first_block_BHR.device, num_keys - num_queries
    rows, columns = first_block_BHR.shape[-1], -(-num_keys // BLOCK_TOKENS)
    first_R = offset + BLOCK_TOKENS * torch.arange(rows, device=device)
    last_R = torch.clamp(first_R + BLOCK_TOKENS - 1, max=num_keys - 1)
    past_full_R = torch.div(first_R + 1, BLOCK_TOKENS, rounding_mode="floor")
    past_seen_R = torch.div(last_R, BLOCK_TOKENS, rounding_mode="floor") + 1
    first_full_BHR = first_block_BHR
    if document_start_BT is not None:
        oldest_B1R, newest_B1R = _document_edges(document_start_BT, rows)
        first_block_BHR = torch.maximum(first_block_BHR, oldest_B1R // BLOCK_TOKENS)
        first_full_BHR = torch.maximum(first_block_BHR, -(-newest_B1R // BLOCK_TOKENS))
    first_full_BHR = torch.minimum(first_full_BHR, past_full_R)

    column_S = torch.arange(columns, device=device)
    num_begun_BHR = first_full_BHR - first_block_BHR
    gap_BHR = past_full_R - num_begun_BHR
    masked_BHRS = column_S + torch.where(
        column_S < num_begun_BHR[..., None], first_block_BHR[..., None], gap_BHR[..., None]
    )
    full_BHRS = first_full_BHR[..., None] + column_S

    def table(x: Tensor) -> Tensor:
        return x.to(torch.int32).contiguous()

    return BlockTables(
        table(num_begun_BHR + past_seen_R - past_full_R),
        table(masked_BHRS.clamp(max=columns - 1)),
        table(past_full_R - first_full_BHR),
        table(full_BHRS.clamp(max=columns - 1)),
    )


def _document_edges(document_start_BT: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Of every block of queries the oldest and the newest start of a document, as [B, 1, R]."""
    missing = rows * BLOCK_TOKENS - document_start_BT.shape[1]
    # The last query stands in for those that are not there.
    filled_BT = torch.cat([document_start_BT, document_start_BT[:, -1:].expand(-1, missing)], dim=1)
    start_B1RM = filled_BT.view(len(filled_BT), 1, rows, BLOCK_TOKENS)
    return start_B1RM.amin(dim=-1), start_B1RM.amax(dim=-1)
