"""What makes a text repeat itself less: functions from logits, and the text so far, to logits.

They need logits as the model gave them, for signs decide. Ids past the last logit have none to change.
"""

import math
from collections.abc import Sequence, Set

import numpy as np
import torch
from torch import Tensor

_LARGEST_PENALTY = 1e9


def penalize_repetition(scores_V: Tensor, ids: Sequence[int], *, penalty: float, slope: float = 1.0) -> Tensor:
    """Make tokens that occur in ``ids`` less likely: positive scores are divided, negative ones multiplied.

    How often a token occurs does not matter. One that occurs only in the older half of ``ids`` is penalised by
    ``1 + (penalty - 1) * slope``. Keskar et al., CTRL, arXiv 1909.05858, section 4.1; the halves are KoboldCpp's.
    """
    middle = len(ids) // 2 if slope < 1 else 0
    near = set(ids[middle:])
    for seen, factor in ((near, penalty), (set(ids[:middle]) - near, 1 + (penalty - 1) * slope)):
        if not seen:
            continue
        index = _known(scores_V, list(seen))
        chosen = scores_V[index]
        scores_V = scores_V.index_copy(0, index, torch.where(chosen < 0, chosen * factor, chosen / factor))
    return scores_V


def penalize_occurrence(scores_V: Tensor, ids: Sequence[int], *, presence: float, frequency: float) -> Tensor:
    """Subtract ``presence`` from the scores of all tokens in ``ids``, and ``frequency`` as often as each occurs.

    As in OpenAI's API.
    """
    counts_V = torch.bincount(_known(scores_V, ids), minlength=len(scores_V)).to(scores_V.dtype)
    return scores_V - presence * (counts_V > 0) - frequency * counts_V


def penalize_continued_repeats(
    scores_V: Tensor,
    ids: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Set[int] = frozenset(),
) -> Tensor:
    """Make tokens less likely that would go on with a passage that stands in ``ids`` before.

    Where the text's last n tokens stood before a token, and n, the most of all such places, is at least
    ``allowed_length``, it loses ``multiplier * base ** (n - allowed_length)``. No passage goes across a breaker.
    DRY by p-e-w, text-generation-webui #5677. O(len(ids)) and what the matches take.
    """
    penalties_V = torch.zeros_like(scores_V)
    for token_id, length in _continued(np.asarray(ids, dtype=np.int64), breakers).items():
        if length >= allowed_length and 0 <= token_id < len(scores_V):
            exponent = min(math.log(base) * (length - allowed_length), math.log(_LARGEST_PENALTY))
            penalties_V[token_id] = multiplier * math.exp(exponent)
    return scores_V - penalties_V


def _continued(ids: np.ndarray, breakers: Set[int]) -> dict[int, int]:
    """For every token that followed an earlier occurrence of the text's end, how long the longest such end is."""
    longest: dict[int, int] = {}
    places = np.arange(len(ids) - 1)
    for length in range(1, len(ids)):
        last = int(ids[-length])
        places = places[places >= length - 1]
        if last in breakers or len(places) == 0:
            break
        places = places[ids[places - (length - 1)] == last]
        longest.update(dict.fromkeys(ids[places + 1].tolist(), length))
    return longest


def _known(scores_V: Tensor, ids: Sequence[int]) -> Tensor:
    # NumPy takes a list in faster than PyTorch does.
    index = np.array(ids, dtype=np.int64)
    return torch.from_numpy(index[(index >= 0) & (index < len(scores_V))])
