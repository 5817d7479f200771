"""Bookmarks: places in a text that can be gone back to although eviction has gone on behind them.

At a bookmark every page is kept that a query behind it can want, so the text can be cut there and go on. Of every
spacing the latest two multiples are kept. As a text grows they change by losing some and gaining its newest, so
whatever a bookmark needs has never been given back. An edit d tokens back, d up to the largest spacing, finds one at
most 4 d back: of the smallest spacing s >= d, at least one of the two lies between s and 2 s back.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS

SPACINGS = (1024, 2048, 4096, 8192)
"""Up to a long chapter back. Further ones would cost more pages than they save: they share none with the end's."""


def check_spacings(spacings: Sequence[int]) -> None:
    """Refuse spacings that are not pages, each a multiple of the one before.

    Raises:
        ValueError: they are not.
    """
    for smaller, larger in pairwise([PAGE_TOKENS, *spacings]):
        if larger < 1 or larger % smaller:
            raise ValueError(
                f"bookmarks must be spaced by multiples of {PAGE_TOKENS} and of each other, rising; got {spacings}"
            )


def bookmarks(num_tokens: int, spacings: Sequence[int]) -> list[int]:
    """Positions kept of a text so long, rising; none of them 0."""
    latest = {(num_tokens // spacing - back) * spacing for spacing in spacings for back in (0, 1)}
    return sorted(position for position in latest if position > 0)


def most_pages_for_bookmarks(window_LH: Tensor, num_tokens: int, spacings: Sequence[int]) -> Tensor:
    """pages_LH, fp64: how many the bookmarks hold at most at any time until a text is so long.

    Args:
        window_LH: pages before a position that a query there can want at most; may be infinite.
        num_tokens: of the whole text.
        spacings: as ``check_spacings`` allows.

    The windows end at the bookmarks, so each holds no more than reaches from it to the one before.
    """
    most_LH = torch.zeros_like(window_LH, dtype=torch.float64)
    if not spacings:
        return most_LH
    # From one bookmark to the next the gaps repeat with the largest spacing; before the first there may be anything.
    for count in range(1, min(num_tokens, 3 * spacings[-1]) // spacings[0] + 1):
        kept = bookmarks(count * spacings[0], spacings)
        gaps = [num_tokens // PAGE_TOKENS, *((stop - start) // PAGE_TOKENS for start, stop in pairwise(kept))]
        held = [window_LH.double().clamp(max=gap) for gap in gaps]
        most_LH = torch.maximum(most_LH, torch.stack(held).sum(dim=0))
    return most_LH
