"""Mirostat: how many tokens there are to choose from follows the surprise of what was chosen, to hold it at a target.

Basu et al., arXiv 2007.14966. The one filter that remembers: a text that is gone on with begins anew.
"""

import math

import torch
from torch import Tensor

# Ranks that the exponent of Zipf's law is estimated from.
_NUM_RANKS = 100


class Mirostat:
    """One text's controller.

    Args:
        version: 1 estimates how many likeliest tokens have the surprise wanted, 2 cuts by surprise itself.
        surprise: the target, bits a token.
        rate: how much of an error is corrected at once.
    """

    def __init__(self, version: int, *, surprise: float, rate: float) -> None:
        self.version, self.surprise, self.rate = version, surprise, rate
        self._allowed = 2 * surprise

    def keep(self, scores_V: Tensor) -> Tensor:
        """Scores with what is too surprising taken out."""
        probs_V, order_V = scores_V.softmax(0).sort(descending=True, stable=True)
        if self.version == 2:
            num_kept = int((-probs_V.log2() <= self._allowed).sum())
        else:
            num_kept = self._num_kept_by_rank(probs_V)
        return scores_V.index_fill(0, order_V[max(1, num_kept) :], -torch.inf)

    def learn(self, prob: float) -> None:
        """Take in the probability that the chosen token had among those kept."""
        self._allowed -= self.rate * (-math.log2(prob) - self.surprise)

    def _num_kept_by_rank(self, probs_V: Tensor) -> int:
        top_R = probs_V[:_NUM_RANKS]
        top_R = top_R[top_R > 0]
        if len(top_R) < 2:
            return 1
        ranks_R = torch.arange(1, len(top_R), dtype=top_R.dtype)
        steps_R, falls_R = ((ranks_R + 1) / ranks_R).log(), (top_R[:-1] / top_R[1:]).log()
        exponent = float((steps_R * falls_R).sum() / steps_R.square().sum())
        excess, num_tokens = exponent - 1, len(probs_V)
        if exponent <= 0:
            return num_tokens
        # (N^excess - 1) / excess tends to log N where the exponent tends to 1.
        shrink = -math.expm1(-excess * math.log(num_tokens)) / excess if excess else math.log(num_tokens)
        log_kept = (self._allowed * math.log(2) - math.log(shrink)) / exponent
        return num_tokens if log_kept >= math.log(num_tokens) else round(math.exp(log_kept))
