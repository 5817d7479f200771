"""Learning rate by step: warm up, hold, cool down (WSD; Hu et al., arXiv 2404.06395)."""


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, cooldown_share: float) -> float:
    """Factor on the peak learning rate at ``step`` (0-based): linear up, flat, linear down to zero behind the last.

    Args:
        step: 0 <= step < steps.
        steps: steps of the whole run.
        warmup_steps: the factor is 1 from this step on.
        cooldown_share: share of all steps, at the end, in which the factor falls.
    """
    cooldown_steps = max(1, round(steps * cooldown_share))
    rising = (step + 1) / (warmup_steps + 1)
    falling = (steps - step) / cooldown_steps
    return min(1.0, rising, falling)
