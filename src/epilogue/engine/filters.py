"""What narrows the next token's distribution: functions from scores to scores, each usable by itself.

Scores are logits of one token, any shift of them being the same distribution; a token that a filter takes out gets
minus infinity. At least one token always stays. Semantics and ties are those of transformers' logits
processors of the same names where it has them, which the tests compare with, and KoboldCpp's of the others.
"""

import math

import torch
from torch import Tensor

_FEW = 512
# Sums of probabilities in fp64 are wrong by far less.
_ROOM = 1e-9


def keep_top_k(scores_V: Tensor, *, top_k: int) -> Tensor:
    """Keep the ``top_k`` likeliest tokens, and those as likely as the last of them."""
    if top_k >= len(scores_V):
        return scores_V
    smallest_kept = scores_V.topk(top_k).values[-1]
    return scores_V.masked_fill(scores_V < smallest_kept, -torch.inf)


def keep_top_a(scores_V: Tensor, *, top_a: float) -> Tensor:
    """Keep tokens at least ``top_a`` times the square of the largest probability as likely; the surer, the fewer."""
    probs_V = scores_V.softmax(0)
    largest = probs_V.max()
    return scores_V.masked_fill(probs_V < top_a * largest.square(), -torch.inf)


def keep_top_p(scores_V: Tensor, *, top_p: float) -> Tensor:
    """Drop the unlikeliest tokens for as long as they have no more than ``1 - top_p`` of the probability together.

    Holtzman et al., nucleus sampling, arXiv 1904.09751.
    """
    probs_V = scores_V.softmax(0)
    # Sorting them all takes longest, so only so many as turn out to be needed, and most often few are.
    for count in (_FEW, len(probs_V)):
        largest_K = probs_V.topk(min(count, len(probs_V))).values
        # What a token has together with all that are less likely.
        rest_K = probs_V.sum() - largest_K.cumsum(0) + largest_K
        num_kept = max(1, int((rest_K > 1 - top_p).sum()))
        if num_kept < len(largest_K):
            break
    least = largest_K[num_kept - 1]
    is_dropped_V = probs_V < least
    # Of equally likely tokens the first ones go.
    ties_K = (probs_V == least).nonzero()[:, 0]
    num_tied = num_kept - int((largest_K > least).sum())
    is_dropped_V[ties_K[: len(ties_K) - num_tied]] = True
    return scores_V.masked_fill(is_dropped_V, -torch.inf)


def keep_min_p(scores_V: Tensor, *, min_p: float) -> Tensor:
    """Keep tokens at least ``min_p`` times as likely as the likeliest.

    Nguyen et al., arXiv 2407.01082.
    """
    return scores_V.masked_fill(scores_V < scores_V.max() + math.log(min_p), -torch.inf)


def keep_top_p_then_min_p(scores_V: Tensor, *, top_p: float, min_p: float) -> Tensor:
    """``keep_min_p`` behind ``keep_top_p``; without sorting where the latter drops nothing that the former keeps.

    So it is where the tokens that ``min_p`` drops are more than ``top_p`` may: in a flat distribution, whose sorting
    takes longest.
    """
    likely_V = keep_min_p(scores_V, min_p=min_p)
    probs_V, is_likely_V = scores_V.softmax(0), likely_V > -torch.inf
    others_V = probs_V.masked_fill(is_likely_V, 0.0)
    # Of equal probabilities ``keep_top_p`` drops some, so there must be none at this edge.
    if float(others_V.sum()) > 1 - top_p + _ROOM and bool(others_V.max() < probs_V[is_likely_V].min()):
        return likely_V
    return keep_min_p(keep_top_p(scores_V, top_p=top_p), min_p=min_p)


def keep_before_tail(scores_V: Tensor, *, tail_free: float) -> Tensor:
    """Keep the likeliest tokens, up to where the sorted probabilities have bent ``tail_free`` of all they bend.

    Phénix and Egan, "Tail free sampling", 2019: the bend is the size of the second difference.
    """
    probs_V, order_V = scores_V.softmax(0).sort(descending=True, stable=True)
    bend_V = probs_V.diff().diff().abs()
    if len(bend_V) == 0 or bend_V.sum() == 0:
        return scores_V
    share_V = bend_V.cumsum(0) / bend_V.sum()
    num_kept = max(1, int((share_V <= tail_free).sum()))
    # What rounding leaves of the last shares is no tail.
    return scores_V if share_V[-1] <= tail_free else scores_V.index_fill(0, order_V[num_kept:], -torch.inf)


def keep_typical(scores_V: Tensor, *, typical: float) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, until they reach ``typical`` of the probability.

    Meister et al., arXiv 2202.00666. The likeliest token may be among those that go.
    """
    log_probs_V = scores_V.log_softmax(0)
    probs_V = log_probs_V.exp()
    entropy = -(probs_V * log_probs_V).nansum()
    order_V = (-log_probs_V - entropy).abs().argsort(stable=True)
    is_enough_V = probs_V[order_V].cumsum(0) >= typical
    num_kept = int((~is_enough_V).sum()) + 1
    return scores_V.index_fill(0, order_V[num_kept:], -torch.inf)


def exclude_top_choices(scores_V: Tensor, *, threshold: float) -> Tensor:
    """Take out all tokens of at least this probability but the least likely of them; a single one stays.

    XTC by p-e-w, text-generation-webui #6335. How often it is done is the sampler's affair.
    """
    probs_V, order_V = scores_V.softmax(0).sort(descending=True, stable=True)
    num_likely = int(((probs_V >= threshold) & (probs_V > 0)).sum())
    return scores_V.index_fill(0, order_V[: max(0, num_likely - 1)], -torch.inf)
