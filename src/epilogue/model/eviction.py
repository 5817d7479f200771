"""Eviction: which pages no future query can want.

A plan of ``model.reach`` knows its queries; giving a page back needs a bound for every query that may ever come. Such
bounds follow from the weights (``model.weight_bounds``) and are kept per page as keys come in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model.bookmarks import most_pages_for_bookmarks
from epilogue.model.page_pool import PageTable

# As in model.reach: nats added against rounding.
_SLACK = 0.01


@dataclass(frozen=True)
class EvictionBounds:
    """What any query of a model can do, layer by layer and head by head; in nats, the softmax's scale included."""

    root_LHDD: Tensor
    """fp32: |root k| bounds what the weights give to |scale * q.k|."""
    offset_LHD: Tensor
    """fp32: |offset.k| bounds what the biases add."""
    error_LH: Tensor
    """fp32: error * |k| bounds what rounding adds."""
    clip: float
    """clip * sum |k_i| bounds |scale * q.k| as well; infinite without a clamp."""
    floor_LH: Tensor
    """fp64: no query's own key scores less."""
    largest_LH: Tensor
    """fp64: no query gives any key more, nor does ``largest_scores`` say more."""

    def largest_scores(self, layer: int, k_KTD: Tensor) -> Tensor:
        """scores_HT in fp32: the most that any query can give each key, before its distance is paid for."""
        return self._largest(slice(layer, layer + 1), k_KTD[None])[0]

    def largest_scores_of_all(self, k_LKTD: Tensor) -> Tensor:
        """scores_LHT: the same of keys of all layers."""
        return self._largest(slice(None), k_LKTD)

    def _largest(self, layers: slice, k_LKTD: Tensor) -> Tensor:
        root_LHDD, offset_LHD, error_LH = self.root_LHDD[layers], self.offset_LHD[layers], self.error_LH[layers]
        k_LHTD = k_LKTD.float().repeat_interleave(root_LHDD.shape[1] // k_LKTD.shape[1], dim=1)
        turned_LHT = (k_LHTD @ root_LHDD.transpose(2, 3)).norm(dim=-1)
        scores_LHT = turned_LHT + (k_LHTD @ offset_LHD[..., None])[..., 0].abs()
        scores_LHT = scores_LHT + error_LH[..., None] * k_LHTD.norm(dim=-1)
        if self.clip < math.inf:
            scores_LHT = torch.minimum(scores_LHT, self.clip * k_LHTD.abs().sum(-1))
        most_LHT: Tensor = scores_LHT * (1 + 1e-4)
        return most_LHT

    def most_pages(
        self,
        slopes_H: Tensor,
        num_tokens: int,
        *,
        epsilon: float,
        kv_heads: int,
        chunk_tokens: int,
        spacings: Sequence[int] = (),
    ) -> Tensor:
        """pages_LK: how many a text of so many tokens can hold at most at any time until it is that long.

        Args:
            slopes_H: fp32.
            num_tokens: of the whole text.
            epsilon: what evicted pages may weigh; 0 keeps all.
            kv_heads: K.
            chunk_tokens: tokens that are taken in between two evictions, and those that eviction lags behind.
            spacings: of the bookmarks that are kept.
        """
        all_pages = -(-num_tokens // PAGE_TOKENS)
        if epsilon <= 0:
            return torch.full((len(self.floor_LH), kv_heads), all_pages)
        slopes_H = slopes_H.double().cpu()
        tail_H = torch.minimum(torch.tensor(float(num_tokens)), 1 / -torch.expm1(-slopes_H)).log()
        nats_LH = self.largest_LH.cpu() - self.floor_LH.cpu() + tail_H + _SLACK - math.log(epsilon)
        # When pages were last given back, those stayed that the reach and two edges touch. Since then a page may have
        # filled token by token, and then a chunk came.
        chunk_pages = -(-min(chunk_tokens, num_tokens) // PAGE_TOKENS)
        window_LH = ((nats_LH / slopes_H / PAGE_TOKENS).ceil() + 2).nan_to_num(math.inf)
        marked_LH = most_pages_for_bookmarks(window_LH, num_tokens, spacings)
        most_LH = (window_LH + 1 + chunk_pages + marked_LH).clamp(max=all_pages)
        return most_LH.to(torch.int64).view(len(most_LH), kv_heads, -1).amax(dim=2)


def evictable_pages(
    table: PageTable, bounds: EvictionBounds, slopes_H: Tensor, *, epsilon: float, num_tokens: int | None = None
) -> Tensor:
    """count_LK: how many of its first pages each layer and head may give back, evicted ones included.

    Whatever comes after the table's first ``num_tokens`` tokens (all of them if None), no query gives those pages' keys
    together more than ``epsilon`` of its probability. The newest page always stays. 0 evicts nothing.
    """
    layers, kv_heads, _ = table.ids_LKP.shape
    num_tokens = table.num_tokens if num_tokens is None else num_tokens
    older = max(0, num_tokens - 1) // PAGE_TOKENS
    if epsilon <= 0 or older == 0:
        return torch.zeros(layers, kv_heads, dtype=torch.int64)
    slopes_H = slopes_H.double().cpu()
    older_P = PAGE_TOKENS * torch.arange(1, older + 1)
    # The next query stands at num_tokens, and later ones further away.
    distance_P = num_tokens - older_P + 1
    tail_HP = torch.minimum(older_P.double(), 1 / -torch.expm1(-slopes_H)[:, None])
    largest_LHP = table.scores_LHP[..., :older].double().cpu().cummax(dim=2).values
    bound_LHP = largest_LHP - bounds.floor_LH.cpu()[..., None] - slopes_H[:, None] * distance_P
    may_go_LHP = bound_LHP + tail_HP.log() + _SLACK <= math.log(epsilon)
    count_LH = may_go_LHP.cummin(dim=2).values.sum(dim=2)
    return count_LH.view(layers, kv_heads, -1).amin(dim=2)
