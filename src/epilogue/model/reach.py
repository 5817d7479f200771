"""Reach: how far back each head must look, proved from norms.

ALiBi lowers a score by slope * distance, and |q.k| <= |q| |k|. So all the probability that keys older than some page can
have is bounded in closed form, and pages whose bound is below epsilon need not be visited, whatever the input. The bound
and its proof: docs/numerics.md. Prior art for forget gates: Adaptive Computation Pruning (Lin et al., arXiv 2504.06949).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.attention import TILE_TOKENS

PAGE_TOKENS = 128
"""Keys that are skipped or visited together."""
# Nats added to every bound against the rounding of norms, scores and the bound itself (some 1e-5 nats each).
_SLACK = 0.01


@dataclass(frozen=True)
class ReachPlan:
    """For every head and tile of queries: the first key that must be visited, and what the older ones may weigh."""

    first_key_HN: Tensor
    """int64, on the queries' device; a multiple of PAGE_TOKENS, at most the tile's first position."""
    omitted_mass_HN: Tensor
    """Certified: no query of the tile gives more than this share of its probability to all older keys together."""
    num_keys: int
    num_queries: int

    def visited(self) -> tuple[Tensor, int]:
        """(query, key) pairs that each head visits, as visited_H, and those of a head that skips nothing."""
        starts_N = _tile_starts(self.first_key_HN.device, self.num_queries, self.num_keys)
        sizes_N = (self.num_keys - starts_N).clamp(max=TILE_TOKENS)
        own = (sizes_N * (sizes_N + 1) // 2).sum()
        past_H = ((starts_N - self.first_key_HN) * sizes_N).sum(dim=1)
        return past_H + own, int(own + (starts_N * sizes_N).sum())


def page_norms(k_BSKD: Tensor) -> Tensor:
    """norms_KP, fp32: the largest norm of a key in each page of PAGE_TOKENS, over the batch too."""
    norms_KS = k_BSKD.float().norm(dim=-1).amax(dim=0).T
    padded_KS = F.pad(norms_KS, (0, -norms_KS.shape[1] % PAGE_TOKENS))
    return padded_KS.reshape(len(padded_KS), -1, PAGE_TOKENS).amax(dim=2)


@torch.no_grad()
def plan_reach(
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    norms_KP: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    epsilon: float,
    num_keys: int,
) -> ReachPlan:
    """Find, for every head and tile, the largest prefix of pages that holds at most ``epsilon`` of the probability.

    A row's log-sum-exp is at least its own key's score, so older keys weigh at most

        exp(scale |q_p| K - m (t0 - e) - own_p - m (p - t0)) * min(e + 1, 1 / (1 - exp(-m)))

    with K their largest norm, e the last of them, t0 the tile's first position. Over the rows of a tile the exponent is
    convex in K, so the chord between K = 0 and the largest K of all bounds it for every prefix at once.

    Args:
        q_BTHD: the queries, the last T of ``num_keys`` positions.
        k_BTKD: those positions' own keys.
        norms_KP: ``page_norms`` of all keys, T newest ones included.
        slopes_H: fp32.
        scale: factor on q.k.
        epsilon: 0 visits everything.
        num_keys: S.

    Returns:
        A plan that holds for every sequence of the batch. O(H * tiles * pages) memory.
    """
    device, num_queries, num_heads = q_BTHD.device, *q_BTHD.shape[1:3]
    starts_N = _tile_starts(device, num_queries, num_keys)
    if epsilon <= 0:
        nothing_HN = torch.zeros(num_heads, len(starts_N), dtype=torch.int64, device=device)
        return ReachPlan(nothing_HN, nothing_HN.double(), num_keys, num_queries)

    slopes_H = slopes_H.double()
    largest_HP = _largest_older(norms_KP, num_heads)
    at_zero_HN, at_most_HN, most_H = _exponents(q_BTHD, k_BTKD, largest_HP, slopes_H, scale=scale)
    share_HP = largest_HP / most_H[:, None]
    exponent_HNP = at_zero_HN[..., None] + (at_most_HN - at_zero_HN)[..., None] * share_HP[:, None]
    older_P = PAGE_TOKENS * torch.arange(1, largest_HP.shape[1] + 1, device=device)
    distance_NP = starts_N[:, None] - older_P + 1
    tail_HP = torch.minimum(older_P.double(), 1 / -torch.expm1(-slopes_H)[:, None])
    bound_HNP = exponent_HNP - slopes_H[:, None, None] * distance_NP + tail_HP.log()[:, None] + _SLACK

    may_skip_HNP = (bound_HNP <= math.log(epsilon)) & (older_P <= starts_N[:, None])
    # The bound grows with the prefix, so the prefixes that may be skipped are the shortest ones.
    skipped_HN = may_skip_HNP.cummin(dim=2).values.sum(dim=2)
    last_HN1 = (skipped_HN - 1).clamp(min=0)[..., None]
    mass_HN = bound_HNP.gather(2, last_HN1)[..., 0].exp().masked_fill(skipped_HN == 0, 0.0)
    return ReachPlan(skipped_HN * PAGE_TOKENS, mass_HN, num_keys, num_queries)


def _tile_starts(device: torch.device, num_queries: int, num_keys: int) -> Tensor:
    """The position of every tile's first query."""
    return torch.arange(num_keys - num_queries, num_keys, TILE_TOKENS, device=device)


def _largest_older(norms_KP: Tensor, num_heads: int) -> Tensor:
    """For every prefix of pages the largest key norm in it, a head each; fp64, never 0."""
    running_KP = norms_KP.double().cummax(dim=1).values.clamp(min=1e-30)
    return running_KP.repeat_interleave(num_heads // len(norms_KP), dim=0)


def _exponents(
    q_BTHD: Tensor, k_BTKD: Tensor, largest_HP: Tensor, slopes_H: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A tile's largest exponent but for the slope's part, at key norm 0 and at the largest norm of all; and that norm."""
    group = q_BTHD.shape[2] // k_BTKD.shape[2]
    wide = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    q_BTHD, k_BTKD = q_BTHD.to(wide), k_BTKD.to(wide)
    own_BTH = (q_BTHD.unflatten(2, (-1, group)) * k_BTKD.unsqueeze(3)).sum(-1).flatten(2) * scale
    norm_BTH = q_BTHD.norm(dim=-1) * abs(scale)
    own_BHT, norm_BHT = own_BTH.transpose(1, 2).double(), norm_BTH.transpose(1, 2).double()
    row_T = torch.arange(q_BTHD.shape[1], device=q_BTHD.device) % TILE_TOKENS
    floor_BHT = own_BHT + slopes_H[:, None] * row_T
    most_H = largest_HP[:, -1]
    return _tile_max(-floor_BHT), _tile_max(norm_BHT * most_H[:, None] - floor_BHT), most_H


def _tile_max(x_BHT: Tensor) -> Tensor:
    """The largest of every tile of TILE_TOKENS, over the batch too, as [H, N]."""
    padded_BHT = F.pad(x_BHT, (0, -x_BHT.shape[2] % TILE_TOKENS), value=-math.inf)
    return padded_BHT.reshape(*padded_BHT.shape[:2], -1, TILE_TOKENS).amax(dim=3).amax(dim=0)
