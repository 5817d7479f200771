"""Reads: how much of the past attention has looked at."""

import torch
from torch import Tensor

from epilogue.model.placed_table import upload
from epilogue.model.reach import ReachPlan


class Reads:
    """How much of the past attention has looked at, per head and over all layers, as (query, key) pairs.

    Counting never waits for the device: sums stay there until somebody asks.
    """

    def __init__(self, visited_H: Tensor, dense_H: Tensor, omitted_mass: float = 0.0) -> None:
        self._visited_H, self._dense_H = visited_H, dense_H
        self._mass = torch.tensor(omitted_mass, dtype=torch.float64)

    @classmethod
    def none(cls, heads: int) -> "Reads":
        """Nothing read yet."""
        return cls(torch.zeros(heads, dtype=torch.int64), torch.zeros(heads, dtype=torch.int64))

    def add(self, plan: ReachPlan) -> None:
        """Count one call of one layer."""
        self.count(*plan.visited(), plan.omitted_mass_HN)

    def count(self, visited_H: Tensor, dense: int, omitted_mass: Tensor) -> None:
        """Count a call of one layer, or of several together.

        Args:
            visited_H: pairs that each head looked at, int64, on any device.
            dense: pairs that each would have looked at without reach.
            omitted_mass: certified shares of probability that were left out, of any shape.
        """
        # After the first call the sums are where the counts are.
        self._visited_H = _placed(self._visited_H, visited_H.device) + visited_H
        self._mass = torch.maximum(_placed(self._mass, omitted_mass.device), omitted_mass.max().double())
        self._dense_H = self._dense_H + dense

    def add_all(self, other: "Reads") -> None:
        """Count what another has counted."""
        self._visited_H = self.visited_H + other.visited_H
        self._dense_H = self._dense_H + other.dense_H
        self._mass = torch.maximum(self._mass.cpu(), other._mass.cpu())

    @property
    def visited_H(self) -> Tensor:
        """int64 on the CPU."""
        return self._visited_H.cpu()

    @property
    def dense_H(self) -> Tensor:
        """int64 on the CPU: what a model without reach would have looked at."""
        return self._dense_H

    @property
    def omitted_mass(self) -> float:
        """Largest certified share of a probability that was left out."""
        return float(self._mass)

    @property
    def share(self) -> float:
        """Of all keys that a model without reach would have looked at; 1 before anything was read."""
        return float(self.visited_H.sum() / self.dense_H.sum()) if self.dense_H.any() else 1.0


def _placed(x: Tensor, device: torch.device) -> Tensor:
    return x if x.device == device else upload(x, device)
