"""Learning rate by step: warm up, then hold and cool down, fall like a cosine, or fall like 1 / sqrt(step)."""

import math
from typing import Literal

Schedule = Literal["wsd", "cosine", "inverse_sqrt"]


def learning_rate_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    cooldown_share: float,
    schedule: Schedule = "wsd",
    final_share: float = 0.0,
) -> float:
    """Factor on the peak learning rate at ``step`` (0-based): linear up, then as the schedule says.

    ``wsd`` (Hu et al., arXiv 2404.06395) holds, then falls linearly; ``cosine`` (Loshchilov & Hutter, arXiv 1608.03983)
    falls from the warm-up's end to the last step; ``inverse_sqrt`` (Vaswani et al., arXiv 1706.03762) knows no last
    step, but cools down like wsd before one if there is a cooldown_share.

    Args:
        step: 0 <= step < steps.
        steps: steps of the whole run.
        warmup_steps: the factor is 1 from this step on.
        cooldown_share: share of all steps, at the end, in which the factor falls linearly; nothing to a cosine.
        schedule: which.
        final_share: what it falls to behind the last step; nothing to inverse_sqrt, which falls to 0.
    """
    rising = (step + 1) / (warmup_steps + 1)
    cooldown_steps = max(1, round(steps * cooldown_share))
    falling = (steps - step) / cooldown_steps
    if schedule == "wsd":
        return min(1.0, rising, final_share + (1 - final_share) * falling)
    if rising < 1:
        return rising
    if schedule == "cosine":
        share_done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return final_share + (1 - final_share) * (1 + math.cos(math.pi * share_done)) / 2
    return math.sqrt((warmup_steps + 1) / (step + 1)) * (min(1.0, falling) if cooldown_share else 1.0)
