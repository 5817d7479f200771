"""Processes agree on the name of their attempt, whatever earlier ones have left in the store."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from epilogue.train.meeting import agree


def attempt_of(store: dist.Store, ranks: list[int], *, world_size: int) -> set[str]:
    """What the processes say that have come, in threads."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return set(pool.map(lambda rank: agree(store, rank=rank, world_size=world_size), ranks))


def test_every_attempt_has_a_name_of_its_own() -> None:
    store = dist.HashStore()
    names = [attempt_of(store, ranks, world_size=3) for ranks in ([0, 1, 2], [2, 1, 0], [1, 0, 2])]
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 3


def test_attempts_of_which_some_never_came() -> None:
    store = dist.HashStore()
    with pytest.raises(dist.DistStoreError):
        agree(store, rank=1, world_size=3, patience=timedelta(milliseconds=10))
    with pytest.raises(dist.DistStoreError, match="2 processes are missing, 1 among them"):
        agree(store, rank=0, world_size=3, patience=timedelta(milliseconds=10))
    assert len(attempt_of(store, [0, 1, 2], world_size=3)) == 1
    assert len(attempt_of(store, [0, 1], world_size=2)) == 1
