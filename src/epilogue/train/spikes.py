"""Steps that are better left out: a loss far above what it has been is a bad batch, or the beginning of the end."""

import math

from epilogue.errors import TrainingError

_DECAY = 0.98
"""Of the running mean and variance: some 50 steps count."""
_LEAST_STEPS = 50
"""Before so many the deviation is not known well enough."""
_MOST_IN_A_ROW = 20


class SpikeGuard:
    """Compares each step's loss with a running mean, in running deviations. What is left out does not count for either.

    Args:
        most_z: deviations above the mean that are too many; None leaves nothing out.
    """

    def __init__(self, most_z: float | None) -> None:
        self._most_z = most_z
        self._steps, self._mean, self._variance = 0, 0.0, 0.0
        self._in_a_row = 0
        self.num_skipped = 0
        """Steps left out so far."""

    def z_of_spike(self, loss: float) -> float | None:
        """How many deviations above the mean this loss is, if the step should be left out; None if not.

        Raises:
            TrainingError: so many in a row were left out that this is no spike.
        """
        if self._most_z is None:
            return None
        z = self._z(loss)
        if z <= self._most_z:
            self._count(loss)
            return None
        self._in_a_row += 1
        self.num_skipped += 1
        if self._in_a_row >= _MOST_IN_A_ROW:
            raise TrainingError(
                f"the loss has stayed above {self._mean + self._most_z * math.sqrt(self._variance):.3f} for "
                f"{self._in_a_row} steps, which is no spike; remove steps to go on from before it rose, with a lower "
                "optimizer.learning_rate or a higher optimizer.spike_z"
            )
        return z

    def state(self) -> list[float]:
        """All it knows."""
        return [self._steps, self._mean, self._variance, self._in_a_row, self.num_skipped]

    def load(self, state: list[float]) -> None:
        """Know what another one knew."""
        steps, self._mean, self._variance, in_a_row, num_skipped = state
        self._steps, self._in_a_row, self.num_skipped = int(steps), int(in_a_row), int(num_skipped)

    def _z(self, loss: float) -> float:
        if self._steps < _LEAST_STEPS:
            return 0.0
        # A loss that hardly moves has no deviation to speak of: a thousandth of it is no spike.
        return (loss - self._mean) / max(math.sqrt(self._variance), 1e-3 * abs(self._mean))

    def _count(self, loss: float) -> None:
        self._steps += 1
        self._in_a_row = 0
        share = max(1 - _DECAY, 1 / self._steps)  # a plain mean until there are enough
        off = loss - self._mean
        self._mean += share * off
        self._variance = (1 - share) * (self._variance + share * off * off)
