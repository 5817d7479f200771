"""What makes a distribution flatter or steeper as a whole: functions from scores to scores; no token is taken out."""

import math

import torch
from torch import Tensor


def apply_temperature(scores_V: Tensor, *, temperature: float) -> Tensor:
    """Divide by a positive temperature, with the largest score moved to 0 first so that nothing overflows."""
    return (scores_V - scores_V.max()) / temperature


def entropy_temperature(scores_V: Tensor, *, low: float, high: float, exponent: float) -> float:
    """A temperature between two by how unsure the model is: ``(entropy / largest entropy) ** exponent`` of the way.

    Dynamic temperature by kalomaze, as KoboldCpp has it.
    """
    log_probs_V = scores_V.log_softmax(0)
    num_possible = int(log_probs_V.isfinite().sum())
    if num_possible < 2:
        return low
    share = float(-(log_probs_V.exp() * log_probs_V).nansum()) / math.log(num_possible)
    return low + (high - low) * math.pow(min(1.0, max(0.0, share)), exponent)


def smooth(scores_V: Tensor, *, factor: float, curve: float) -> Tensor:
    """Bend scores below the largest: ``- k factor d^2 + s factor d^3`` with d <= 0 the distance to it.

    k = (3 - curve) / 2 and s = (curve - 1) / 2; a curve of 1 is quadratic. Smooth sampling by kalomaze.
    """
    below_V = scores_V - scores_V.max()
    bent_V = -factor * (3 - curve) / 2 * below_V.square() + factor * (curve - 1) / 2 * below_V.pow(3)
    return torch.where(below_V.isfinite(), bent_V, below_V)
