"""Texts on pages of their own, for tests of the model that need a cache and no engine."""

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import Storage
from epilogue.model import MPT, KVCache, MPTConfig, PagePool, PageTable, Reads, Segment


class Paged:
    """The cache of a batch of texts of one length, with room for so many tokens each."""

    def __init__(
        self,
        config: MPTConfig,
        *,
        capacity_tokens: int,
        batch: int = 1,
        storage: Storage = "float32",
        epsilon: float = 1e-6,
    ) -> None:
        self.tables = [PageTable.empty(config, capacity_tokens=capacity_tokens) for _ in range(batch)]
        pages = sum(table.ids_LKP.numel() for table in self.tables)
        self.pool = PagePool(config, num_pages=pages, storage=storage)
        for table, ids in zip(self.tables, torch.arange(pages).chunk(batch), strict=True):
            table.ids_LKP[...] = ids.view_as(table.ids_LKP)
        self.reads = Reads.none(config.n_heads)
        self.epsilon = epsilon

    @property
    def num_tokens(self) -> int:
        """Of every text."""
        return self.tables[0].num_tokens

    @num_tokens.setter
    def num_tokens(self, num_tokens: int) -> None:
        for table in self.tables:
            table.num_tokens = num_tokens

    def read(self, model: MPT, ids_BT: Tensor) -> Tensor:
        """logits_BTV of new tokens, which the cache takes in."""
        segments = [Segment(table, ids_BT.shape[1], self.reads) for table in self.tables]
        logits = model(ids_BT.reshape(1, -1), KVCache(self.pool, segments, epsilon=self.epsilon))
        self.num_tokens += ids_BT.shape[1]
        return logits.view(*ids_BT.shape, -1)
