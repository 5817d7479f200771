"""What an engine holds and has done, in numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from epilogue.engine.pages import Pages
from epilogue.engine.sequence import Sequence
from epilogue.model import Reads, kv_bytes_per_token, page_bytes


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Over all open sequences."""

    num_sequences: int
    num_tokens: int
    pages_held: int
    pages_free: int
    bytes_held: int
    bytes_dense_bf16: int
    """What a cache of all tokens, layers and heads would hold in bf16, nothing shared and nothing evicted."""
    share_visited: float
    """Of the keys that attention without reach would have looked at."""
    omitted_mass: float
    """Largest certified share of a probability that was left out."""
    drafted_tokens: int
    """That went through the model before they were chosen."""
    accepted_tokens: int
    """Of these, those that were chosen: so many passes were saved."""


def gather_stats(pages: Pages, texts: Iterable[Sequence]) -> Stats:
    """Count now."""
    texts, config = list(texts), pages.pool.config
    reads = Reads.none(config.n_heads)
    for text in texts:
        reads.add_all(text.reads)
    tokens = sum(text.table.num_tokens for text in texts)
    return Stats(
        num_sequences=len(texts),
        num_tokens=tokens,
        pages_held=pages.num_held,
        pages_free=pages.num_free,
        bytes_held=pages.num_held * page_bytes(config, pages.pool.storage),
        bytes_dense_bf16=tokens * kv_bytes_per_token(config, torch.bfloat16),
        share_visited=reads.share,
        omitted_mass=reads.omitted_mass,
        drafted_tokens=sum(text.num_drafted for text in texts),
        accepted_tokens=sum(text.num_accepted for text in texts),
    )
