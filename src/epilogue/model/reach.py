"""Reach: how far back each head must look, proved from norms.

ALiBi lowers a score by slope * distance, and |q.k| <= |q| |k|. So all the probability that keys older than some page
can have is bounded in closed form, and pages whose bound is below epsilon need not be visited, whatever the input. The
bound and its proof: docs/numerics.md. Prior art for forget gates: Adaptive Computation Pruning (Lin et al., arXiv
2504.06949).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.attention import TILE_TOKENS
from epilogue.kernels.paged_attention import PAGE_TOKENS, PrefixBounds, can_bound, tile_exponents, tile_prefixes

# Nats added to every bound against the fp64 rounding of the bound itself.
_SLACK = 0.01
# Squares of less may vanish from an fp32 norm (they do below 2**-63; the room makes _rounding cover products too).
_LEAST = 2.0**-50


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
        num_older = self.num_keys - self.num_queries
        return past_H + own, self.num_queries * num_older + self.num_queries * (self.num_queries + 1) // 2


def page_norms(k_BSKD: Tensor) -> Tensor:
    """norms_KP, fp32: the largest norm of a key in each page of PAGE_TOKENS, over the batch too.

    As fp32 rounds them, up or down; ``plan_reach`` makes room for that.
    """
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
    convex in K, so the chord between K = 0 and the largest K of all bounds it for every prefix at once. A NaN or an
    infinity anywhere in a head makes its bounds NaN or infinite, and nothing of it is skipped.

    Args:
        q_BTHD: the queries, the last T of ``num_keys`` positions.
        k_BTKD: those positions' own keys.
        norms_KP: ``page_norms`` of all keys, T newest ones included; larger numbers are safe.
        slopes_H: fp32.
        scale: factor on q.k.
        epsilon: 0 visits everything.
        num_keys: S.

    Returns:
        A plan that holds for every sequence of the batch, also where a query may not see some of the older keys
        (another document's): then they weigh less. O(H * tiles * pages) memory.
    """
    device, num_queries, num_heads = q_BTHD.device, *q_BTHD.shape[1:3]
    if epsilon <= 0:
        nothing_HN = torch.zeros(num_heads, -(-num_queries // TILE_TOKENS), dtype=torch.int64, device=device)
        return ReachPlan(nothing_HN, nothing_HN.double(), num_keys, num_queries)

    slopes_H = slopes_H.double()
    largest_HP = _largest_older(norms_KP, num_heads, q_BTHD.shape[3])
    at_zero_HN, at_most_HN = _exponents(q_BTHD, k_BTKD, largest_HP, slopes_H, scale=scale)
    if len(q_BTHD) == 1 and can_bound(q_BTHD, k_BTKD):
        first_key_HN, mass_HN = tile_prefixes(
            at_zero_HN,
            at_most_HN,
            largest_HP,
            slopes_H,
            start=num_keys - num_queries,
            tile_tokens=TILE_TOKENS,
            epsilon=epsilon,
            slack=_SLACK,
        )
    else:
        starts_N = _tile_starts(device, num_queries, num_keys)
        first_key_HN, mass_HN = _longest_prefixes(
            at_zero_HN, at_most_HN, largest_HP, slopes_H, starts_N, epsilon=epsilon
        )
    return ReachPlan(first_key_HN, mass_HN, num_keys, num_queries)


def _longest_prefixes(
    at_zero_HN: Tensor, at_most_HN: Tensor, largest_HP: Tensor, slopes_H: Tensor, starts_N: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """first_key_HN and omitted_mass_HN of a plan, from each tile's exponents and the largest norm of every prefix."""
    share_HP = largest_HP / largest_HP[:, -1:]
    exponent_HNP = at_zero_HN[..., None] + (at_most_HN - at_zero_HN)[..., None] * share_HP[:, None]
    older_P = PAGE_TOKENS * torch.arange(1, largest_HP.shape[1] + 1, device=starts_N.device)
    distance_NP = starts_N[:, None] - older_P + 1
    tail_HP = torch.minimum(older_P.double(), 1 / -torch.expm1(-slopes_H)[:, None])
    bound_HNP = exponent_HNP - slopes_H[:, None, None] * distance_NP + tail_HP.log()[:, None] + _SLACK

    may_skip_HNP = (bound_HNP <= math.log(epsilon)) & (older_P <= starts_N[:, None])
    # The bound grows with the prefix, so the prefixes that may be skipped are the shortest ones. (Were it not for
    # that, cumprod would skip too little, never too much: each prefix stands on its own bound.)
    skipped_HN = may_skip_HNP.to(torch.int32).cumprod(dim=2).sum(dim=2)
    last_HN1 = (skipped_HN - 1).clamp(min=0)[..., None]
    mass_HN = bound_HNP.gather(2, last_HN1)[..., 0].exp().clamp(max=epsilon).masked_fill(skipped_HN == 0, 0.0)
    return skipped_HN * PAGE_TOKENS, mass_HN


def running_norms(norms_KP: Tensor, head_dim: int) -> Tensor:
    """fp64 [..., K, P]: of every prefix of pages no key has a larger norm. Never 0."""
    return _at_least(norms_KP, head_dim).cummax(dim=-1).values


def prefix_costs(slopes_H: Tensor, num_keys_B: Tensor, num_pages: int) -> Tensor:
    """costs_BHP, fp64: of what ``plan_reach`` adds up for a prefix of pages, all that no query and no key changes.

    For one query a sequence, its last token. Infinite where a page is not wholly older than that.
    """
    slopes_H, start_B = slopes_H.double(), num_keys_B - 1
    older_P = PAGE_TOKENS * torch.arange(1, num_pages + 1, device=slopes_H.device)
    tail_HP = torch.minimum(older_P.double(), 1 / -torch.expm1(-slopes_H)[:, None])
    distance_BP = start_B[:, None] - older_P + 1
    costs_BHP = tail_HP.log() + _SLACK - slopes_H[:, None] * distance_BP[:, None]
    return costs_BHP.masked_fill((older_P > start_B[:, None])[:, None], math.inf)


def plan_tokens(
    q_BTHD: Tensor, k_BTKD: Tensor, running_BKP: Tensor, costs_BHP: Tensor, *, scale: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """``plan_reach`` for one query of each sequence, in fixed shapes and without a number on the host.

    Args:
        q_BTHD: T is 1.
        k_BTKD: the queries' own keys.
        running_BKP: ``running_norms`` of all pages that are wholly older; what it says of others is not used.
        costs_BHP: ``prefix_costs``.
        scale: factor on q.k.
        epsilon: above 0.

    Returns:
        skipped_BH, int64, how many pages need not be visited, and omitted_mass_BH, what they weigh at most.
    """
    own_BH1, norm_BH1 = _own_scores(q_BTHD, k_BTKD, scale=scale)
    norm_BKG1 = norm_BH1.unflatten(1, (running_BKP.shape[1], -1))
    bound_BHP = (norm_BKG1 * running_BKP[:, :, None]).flatten(1, 2) + (costs_BHP - own_BH1)
    may_skip_BHP = bound_BHP <= math.log(epsilon)
    # Each prefix stands on its own bound, and a shorter one weighs less: as many as hold may go, whichever they are.
    mass_BH = bound_BHP.where(may_skip_BHP, -math.inf).amax(dim=2).exp()
    return may_skip_BHP.sum(dim=2), mass_BH


def prefix_bounds(
    running_BKP: Tensor, costs_BHP: Tensor, first_live_BK: Tensor, *, head_dim: int, epsilon: float
) -> PrefixBounds:
    """What ``take_in`` plans from, as ``plan_tokens`` does; pages before ``first_live_BK`` are gone."""
    least = math.sqrt(head_dim) * _LEAST
    return PrefixBounds(running_BKP, costs_BHP, first_live_BK, epsilon, _rounding(head_dim), least)


def _tile_starts(device: torch.device, num_queries: int, num_keys: int) -> Tensor:
    """The position of every tile's first query."""
    return torch.arange(num_keys - num_queries, num_keys, TILE_TOKENS, device=device)


def _rounding(head_dim: int) -> float:
    """By what share of |x| |y| an fp32 dot product of this width may be wrong, in any order of summing; a norm too."""
    return (head_dim + 8) * 2.0**-24


def _at_least(norms: Tensor, head_dim: int) -> Tensor:
    """fp64 numbers no smaller than the true norms, which fp32 rounds up or down, or to 0 where squares vanish."""
    return norms.double() * (1 + _rounding(head_dim)) + math.sqrt(head_dim) * _LEAST


def _largest_older(norms_KP: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """For every prefix of pages at least the largest key norm in it, a head each; fp64, never 0."""
    running_KP = _at_least(norms_KP, head_dim).cummax(dim=1).values
    group = num_heads // len(norms_KP)
    return running_KP.repeat_interleave(group, dim=0) if group > 1 else running_KP


def _own_scores(q_BTHD: Tensor, k_BTKD: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """own_BHT, at most what each query scores with its own key, and norm_BHT, at least |scale| |q|; both fp64."""
    head_dim, group = q_BTHD.shape[3], q_BTHD.shape[2] // k_BTKD.shape[2]
    wide = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    q_BTHD, k_BTKD = q_BTHD.to(wide), k_BTKD.to(wide)
    dot_BTH = (q_BTHD.unflatten(2, (-1, group)) * k_BTKD.unsqueeze(3)).sum(-1).flatten(2).double()
    norm_BTH = _at_least(q_BTHD.norm(dim=-1), head_dim) * abs(scale)
    own_norm_BTH = _at_least(k_BTKD.norm(dim=-1), head_dim).repeat_interleave(group, dim=2)
    own_BTH = dot_BTH * scale - _rounding(head_dim) * norm_BTH * own_norm_BTH
    return own_BTH.transpose(1, 2), norm_BTH.transpose(1, 2)


def _exponents(
    q_BTHD: Tensor, k_BTKD: Tensor, largest_HP: Tensor, slopes_H: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """A tile's largest exponent but for the prefix's distance, at key norm 0 and at the largest norm."""
    most_H = largest_HP[:, -1]
    if len(q_BTHD) == 1 and can_bound(q_BTHD, k_BTKD):
        head_dim = q_BTHD.shape[3]
        return tile_exponents(
            q_BTHD[0],
            k_BTKD[0],
            slopes_H,
            most_H,
            scale=scale,
            tile_tokens=TILE_TOKENS,
            rounding=_rounding(head_dim),
            least=math.sqrt(head_dim) * _LEAST,
        )
    own_BHT, norm_BHT = _own_scores(q_BTHD, k_BTKD, scale=scale)
    row_T = torch.arange(q_BTHD.shape[1], device=q_BTHD.device) % TILE_TOKENS
    floor_BHT = own_BHT + slopes_H[:, None] * row_T
    return _tile_max(-floor_BHT), _tile_max(norm_BHT * most_H[:, None] - floor_BHT)


def _tile_max(x_BHT: Tensor) -> Tensor:
    """The largest of every tile of TILE_TOKENS, over the batch too, as [H, N]."""
    padded_BHT = F.pad(x_BHT, (0, -x_BHT.shape[2] % TILE_TOKENS), value=-math.inf)
    return padded_BHT.reshape(*padded_BHT.shape[:2], -1, TILE_TOKENS).amax(dim=3).amax(dim=0)
