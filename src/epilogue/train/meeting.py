"""How processes that torchrun has started find each other, also when it starts them again.

torchrun's agent keeps one store of keys and values for all attempts of a run, and PyTorch (2.13) would take addresses
of dead processes out of it (pytorch issue 135712). Numbers of restarts do not tell attempts apart either: they differ
between machines of which one has come later. So the first process names the attempt, and the others learn its name
under a word that only they have said.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from epilogue.errors import TrainingError

_PATIENCE = timedelta(minutes=10)
_LOOK_EVERY_S = 0.02


@contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Meet the other processes that torchrun has started, and leave together; nothing happens in one that is alone.

    Args:
        device: cpu or cuda; each process then has the GPU of its local rank.

    Raises:
        TrainingError: the others have not come within ten minutes.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world_size = next(iter(rendezvous("env://")))
    try:
        attempt = agree(store, rank=rank, world_size=world_size)
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise TrainingError(
            f"process {rank} of {world_size} has not met the others ({' '.join(str(error).split())}); see what they say"
        ) from error
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    dist.init_process_group(backend, store=PrefixStore(attempt, store), rank=rank, world_size=world_size)
    yield
    # Not after an error: it would wait for processes that wait for this one, and torchrun must see it end.
    dist.destroy_process_group()


def agree(store: Store, *, rank: int, world_size: int, patience: timedelta = _PATIENCE) -> str:
    """A name that all processes of this attempt get and no other attempt has had.

    Args:
        store: may hold anything of earlier attempts.
        rank: of this process; 0 names.
        world_size: how many must agree.
        patience: how long to wait for the others.

    Raises:
        DistStoreError: some have not come in time.
    """
    if rank:
        word = uuid4().hex
        store.set(f"here/{rank}", word)
        store.wait([f"welcome/{word}"], patience)
        attempt: str = store.get(f"welcome/{word}").decode()
        store.set(f"{attempt}/joined/{rank}", "")
        return attempt
    return _welcome(store, set(range(1, world_size)), time.monotonic() + patience.total_seconds())


def _welcome(store: Store, missing: set[int], deadline_s: float) -> str:
    """Answer whatever the others say until each has heard; what a dead process has said is answered for nothing."""
    attempt = uuid4().hex
    while missing := {rank for rank in missing if not store.check([f"{attempt}/joined/{rank}"])}:
        for rank in missing:
            if store.check([f"here/{rank}"]):
                store.set(f"welcome/{store.get(f'here/{rank}').decode()}", attempt)
        if time.monotonic() > deadline_s:
            raise dist.DistStoreError(f"{len(missing)} processes are missing, {min(missing)} among them")
        time.sleep(_LOOK_EVERY_S)
    return attempt
