"""What narrows the next token's distribution: functions from scores to scores, each usable by itself.

Scores are logits of one token, any shift of them being the same distribution; a token that a filter takes out gets
minus infinity. At least the likeliest token always stays. Semantics and ties are those of transformers' logits
processors of the same names, which the tests compare with.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def penalize_repetition(scores_V: Tensor, ids: Iterable[int], *, penalty: float) -> Tensor:
    """Make tokens that occur in ``ids`` less likely: positive scores are divided, negative ones multiplied.

    How often a token occurs does not matter; ids past the last score have none to change. Needs logits as the model
    gave them, for their sign decides. Keskar et al., CTRL, arXiv 1909.05858, section 4.1.
    """
    seen = torch.tensor([i for i in set(ids) if 0 <= i < len(scores_V)], dtype=torch.int64)
    penalized = scores_V[seen]
    penalized = torch.where(penalized < 0, penalized * penalty, penalized / penalty)
    return scores_V.index_copy(0, seen, penalized)


def apply_temperature(scores_V: Tensor, *, temperature: float) -> Tensor:
    """Divide by a positive temperature, with the largest score moved to 0 first so that nothing overflows."""
    return (scores_V - scores_V.max()) / temperature


def keep_top_k(scores_V: Tensor, *, top_k: int) -> Tensor:
    """Keep the ``top_k`` likeliest tokens, and those as likely as the last of them."""
    if top_k >= len(scores_V):
        return scores_V
    smallest_kept = scores_V.topk(top_k).values[-1]
    return scores_V.masked_fill(scores_V < smallest_kept, -torch.inf)


def keep_top_p(scores_V: Tensor, *, top_p: float) -> Tensor:
    """Drop the unlikeliest tokens for as long as they have no more than ``1 - top_p`` of the probability together.

    Holtzman et al., nucleus sampling, arXiv 1904.09751.
    """
    ascending_V, order_V = scores_V.sort(stable=True)
    is_dropped_V = ascending_V.softmax(0).cumsum(0) <= 1 - top_p
    is_dropped_V[-1] = False
    return scores_V.index_fill(0, order_V[is_dropped_V], -torch.inf)


def keep_min_p(scores_V: Tensor, *, min_p: float) -> Tensor:
    """Keep tokens at least ``min_p`` times as likely as the likeliest.

    Nguyen et al., arXiv 2407.01082.
    """
    return scores_V.masked_fill(scores_V < scores_V.max() + math.log(min_p), -torch.inf)
