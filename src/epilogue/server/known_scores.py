"""How likely texts were that were scored before, so that what several texts begin with is scored once.

Pages alone do not spare it: a token's probability needs the model's output at the token before, and that is not kept.
"""

from collections import deque
from collections.abc import Sequence as Several

import torch

from epilogue.engine import PAGE_TOKENS, Scores
from epilogue.engine.prefixes import common_tokens

_MOST_BYTES = 2**26


class KnownScores:
    """Remembers the latest texts that were scored. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._texts: deque[tuple[Several[int], Scores]] = deque()
        self._num_bytes = 0

    def add(self, ids: Several[int], scores: Scores) -> None:
        """Remember the scores of all tokens of a text but the first."""
        self._texts.appendleft((ids, scores))
        self._num_bytes += _num_bytes(scores)
        while self._num_bytes > _MOST_BYTES:
            self._num_bytes -= _num_bytes(self._texts.pop()[1])

    def beginning(self, ids: Several[int], *, top: int) -> Scores:
        """The scores of a text's tokens behind the first, as far as they are known and a page or more.

        Args:
            ids: the text.
            top: how many of the likeliest tokens are told beside each.
        """
        page = ids[:PAGE_TOKENS]
        fitting = [
            (known, scores)
            for known, scores in self._texts
            if scores.top_TN.shape[1] >= top and known[:PAGE_TOKENS] == page
        ]
        common, scores = max(
            ((common_tokens(ids, known) - 1, scores) for known, scores in fitting),
            key=lambda found: found[0],
            default=(0, None),
        )
        if scores is None or common < PAGE_TOKENS:
            return Scores(torch.zeros(0), torch.zeros(0, top, dtype=torch.int64), torch.zeros(0, top))
        return Scores(scores.logprobs_T[:common], scores.top_TN[:common, :top], scores.top_logprobs_TN[:common, :top])


def joined(parts: Several[Scores]) -> Scores:
    """The scores of tokens that follow one another."""
    return Scores(*map(torch.cat, zip(*parts, strict=True)))


def _num_bytes(scores: Scores) -> int:
    return sum(tensor.nbytes for tensor in scores)
