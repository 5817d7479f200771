"""Pages of keys and values: the pool that all sequences share, and one sequence's table into it.

Tensors only. Which page is free, shared or given back is the engine's bookkeeping (``engine.pages``).

A table's tensors are ordinary ones whoever makes it: one that is made under ``torch.inference_mode`` could not be
changed outside of it, and would not tell when it is changed, which the copies in captured steps rely on.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage, allocate_pages, bytes_per_page
from epilogue.model.config import MPTConfig


class PagePool:
    """Memory for ``num_pages`` pages, each one head's keys and values of PAGE_TOKENS tokens.

    On the CPU memory is taken when a page is first written, not here.
    """

    def __init__(
        self,
        config: MPTConfig,
        *,
        num_pages: int,
        storage: Storage = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.num_pages, self.storage, self.device = config, num_pages, storage, device
        self.keys = allocate_pages(num_pages, config.head_dim, storage, device)
        self.values = allocate_pages(num_pages, config.head_dim, storage, device)

    def copy_pages(self, sources: Tensor, targets: Tensor) -> None:
        """Make some pages' content others', before one of two sequences that share them writes on."""
        sources, targets = (ids.to(self.keys.data_PWD.device) for ids in (sources, targets))
        for pages in (self.keys, self.values):
            for tensor in (pages.data_PWD, pages.scale_PW, pages.zero_PW):
                if tensor is not None:
                    tensor[targets] = tensor[sources]


def page_bytes(config: MPTConfig, storage: Storage) -> int:
    """Bytes of one page, keys and values together."""
    return 2 * bytes_per_page(config.head_dim, storage)


def bytes_per_key(config: MPTConfig, storage: Storage) -> float:
    """Bytes of one key and its value in one head's page, their share of scales and zero points included."""
    return page_bytes(config, storage) / PAGE_TOKENS


@dataclass(eq=False)
class PageTable:
    """Where one sequence's tokens lie, and what their keys are bounded by."""

    ids_LKP: Tensor
    """int64 on the CPU: page ids in token order; -1 where a page was evicted or is not there yet. Eviction leaves
    holes: pages before one are kept for going back, and are not looked at."""
    norms_LKP: Tensor
    """fp32: no key of a page has a larger norm. Evicted pages keep theirs."""
    scores_LHP: Tensor
    """fp32: no future query gives a key of a page a larger score, its distance not counted."""
    num_tokens: int = 0
    """Tokens that all layers hold or have evicted."""

    @classmethod
    @torch.inference_mode(False)
    def empty(cls, config: MPTConfig, *, capacity_tokens: int, device: torch.device | str = "cpu") -> "PageTable":
        """A table with room for so many tokens and no pages yet."""
        pages = -(-capacity_tokens // PAGE_TOKENS)
        layers, kv_heads, heads = config.n_layers, config.kv_n_heads, config.n_heads
        return cls(
            ids_LKP=torch.full((layers, kv_heads, pages), -1),
            norms_LKP=torch.zeros(layers, kv_heads, pages, device=device),
            scores_LHP=torch.zeros(layers, heads, pages, device=device),
        )

    @property
    def capacity_tokens(self) -> int:
        """Tokens there is room for."""
        return self.ids_LKP.shape[2] * PAGE_TOKENS

    @property
    def num_pages(self) -> int:
        """Pages that its tokens reach into, evicted ones included."""
        return -(-self.num_tokens // PAGE_TOKENS)

    @property
    def first_live_LK(self) -> Tensor:
        """Of each layer and head the first page from which on none is missing, up to the newest."""
        return _behind_last_hole(self.ids_LKP[..., : self.num_pages])

    @torch.inference_mode(False)
    def reserve(self, num_tokens: int) -> None:
        """Make room for so many tokens; half as much again, so that a story grows in few steps."""
        width = self.ids_LKP.shape[2]
        if num_tokens <= width * PAGE_TOKENS:
            return
        width = -(-num_tokens // PAGE_TOKENS) + width // 2
        # The ids last: they tell how much room there is, and an interruption may come between.
        self.norms_LKP = F.pad(self.norms_LKP, (0, width - self.norms_LKP.shape[2]))
        self.scores_LHP = F.pad(self.scores_LHP, (0, width - self.scores_LHP.shape[2]))
        self.ids_LKP = F.pad(self.ids_LKP, (0, width - self.ids_LKP.shape[2]), value=-1)

    @torch.inference_mode(False)
    def copy(self) -> "PageTable":
        """The same pages, in a table of its own."""
        return PageTable(self.ids_LKP.clone(), self.norms_LKP.clone(), self.scores_LHP.clone(), self.num_tokens)


def _behind_last_hole(ids: Tensor) -> Tensor:
    """For ids [..., P], the place behind the last -1; 0 if there is none."""
    is_hole = (ids < 0).flip(-1).numpy()
    # The first hole from the end, or 0 where there is none: NumPy stops there, and looks at bytes.
    behind = is_hole.shape[-1] - is_hole.argmax(-1) if is_hole.shape[-1] else 0
    return torch.from_numpy(np.where(is_hole.any(-1), behind, 0))
