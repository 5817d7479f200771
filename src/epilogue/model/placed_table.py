"""What a pass looks up in a page table, where its pages are: sent there once, not once a layer.

A copy from ordinary memory waits for everything that a GPU was given before it, and the GPU then waits in turn for what
comes next. So whatever a layer needs from the host goes there ahead of the first one, from memory that is pinned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model.page_pool import PageTable


def upload(x: Tensor, device: torch.device) -> Tensor:
    """The same on a device. Onto a GPU by a copy that nobody waits for; ``x`` may be changed meanwhile."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


@dataclass(frozen=True)
class PlacedTable:
    """Of one text, for all layers; a view of the table on the CPU, a copy elsewhere."""

    ids_LKP: Tensor
    """int64: up to the pages of the new tokens, -1 where there is none."""
    first_live_LK: Tensor
    """int64: ``PageTable.first_live_LK``."""
    oldest_live_L: list[int]
    """On the host: the first page of which any head of a layer has all that follow."""

    @classmethod
    def of(cls, table: PageTable, num_tokens: int, device: torch.device) -> "PlacedTable":
        """A table for a pass behind which the text has so many tokens, with pages for all of them."""
        ids_LKP = table.ids_LKP[..., : -(-num_tokens // PAGE_TOKENS)]
        first_live_LK = table.first_live_LK
        oldest_live_L = first_live_LK.amin(dim=1).tolist()
        if device.type == "cpu":
            return cls(ids_LKP, first_live_LK, oldest_live_L)
        # Both in one copy, and half as wide as on the host.
        both_LKP = torch.cat([ids_LKP.to(torch.int32), first_live_LK[..., None].to(torch.int32)], dim=2)
        both_LKP = upload(both_LKP, device).long()
        return cls(both_LKP[..., :-1], both_LKP[..., -1], oldest_live_L)
