"""Eviction: which pages no future query can want.

A plan of ``model.reach`` knows its queries; giving a page back needs a bound for every query that may ever come. Such
bounds follow from the weights (``model.weight_bounds``) and are kept per page as keys come in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS, can_bound, largest_of_pages, page_scores
from epilogue.model.bookmarks import most_pages_for_bookmarks
from epilogue.model.page_pool import PageTable

# As in model.reach: nats added against rounding.
_SLACK = 0.01
# What scores grow by against the rounding of fp32 sums.
_ROUNDING = 1 + 1e-4


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

    def largest_of_pages(self, layer: int, k_KTD: Tensor, start: int) -> Tensor:
        """scores_HP: ``largest_scores`` of every page, the first of which has ``start`` keys before these."""
        if not can_bound(k_KTD) or k_KTD.dtype != torch.float32:
            return largest_of_pages(self.largest_scores(layer, k_KTD), start)
        if self._reach_LH is not None:
            return page_scores(k_KTD, None, None, self._reach_LH[layer], clip=self.clip, start=start) * _ROUNDING
        root_HDD = self.root_LHDD[layer]
        group = len(root_HDD) // len(k_KTD)
        k_HTD = k_KTD.repeat_interleave(group, dim=0) if group > 1 else k_KTD
        scores_HP = page_scores(
            k_KTD, k_HTD @ root_HDD.mT, self.offset_LHD[layer], self.error_LH[layer], clip=self.clip, start=start
        )
        return scores_HP * _ROUNDING

    @cached_property
    def _reach_LH(self) -> Tensor | None:
        """fp32: reach * |k| is all of a score but for the clamp, if roots are multiples of one and no bias adds any.

        So it is behind a clamp (``model.weight_bounds``): then there is nothing to multiply.
        """
        length_LH = self.root_LHDD[..., 0, 0]
        one_DD = torch.eye(self.root_LHDD.shape[-1], device=length_LH.device)
        is_multiple = torch.equal(self.root_LHDD, length_LH[..., None, None] * one_DD)
        return None if self.offset_LHD.any() or not is_multiple else length_LH.abs() + self.error_LH

    def _largest(self, layers: slice, k_LKTD: Tensor) -> Tensor:
        root_LHDD, offset_LHD, error_LH = self.root_LHDD[layers], self.offset_LHD[layers], self.error_LH[layers]
        k_LHTD = k_LKTD.float().repeat_interleave(root_LHDD.shape[1] // k_LKTD.shape[1], dim=1)
        turned_LHT = (k_LHTD @ root_LHDD.transpose(2, 3)).norm(dim=-1)
        scores_LHT = turned_LHT + (k_LHTD @ offset_LHD[..., None])[..., 0].abs()
        scores_LHT = scores_LHT + error_LH[..., None] * k_LHTD.norm(dim=-1)
        if self.clip < math.inf:
            scores_LHT = torch.minimum(scores_LHT, self.clip * k_LHTD.abs().sum(-1))
        most_LHT: Tensor = scores_LHT * _ROUNDING
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


def evictable_from(table: PageTable, bounds: EvictionBounds, slopes_H: Tensor, *, epsilon: float) -> Tensor:
    """from_LKP, fp64 on the device of the table's scores: how long a text must be for its first pages to be given back.

    Whatever comes behind so many tokens or more, no query gives the keys of all pages up to this one together more than
    ``epsilon`` of its probability. Infinite where that never comes, as with an epsilon of 0; rising with the page, and
    never so short that the newest page would go.
    """
    (layers, kv_heads, pages), device = table.ids_LKP.shape, table.scores_LHP.device
    if epsilon <= 0:
        return torch.full((layers, kv_heads, pages), math.inf, dtype=torch.float64, device=device)
    slopes_H = slopes_H.to(device, torch.float64)
    older_P = PAGE_TOKENS * torch.arange(1, pages + 1, device=device)
    tail_HP = torch.minimum(older_P.double(), 1 / -torch.expm1(-slopes_H)[:, None])
    largest_LHP = table.scores_LHP.double().cummax(dim=2).values
    nats_LHP = largest_LHP - bounds.floor_LH.to(device)[..., None] + tail_HP.log() + (_SLACK - math.log(epsilon))
    # The next query stands at the text's length, and later ones further away: until the distance has paid for them.
    paid_LHP = older_P - 1 + nats_LHP / slopes_H[:, None]
    from_LHP = torch.maximum(paid_LHP.cummax(dim=2).values, older_P + 1.0)
    return from_LHP.view(layers, kv_heads, -1, pages).amax(dim=2)
