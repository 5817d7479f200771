"""Work done by several processes that exchange tensors on this machine, as torchrun's would on several."""

import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

_PATIENCE_S = 120
# Forked from one process that has loaded everything: a process costs a tenth of a second in place of several.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["torch", "torch._dynamo", "epilogue.train", "train.processes"])


def begin(work: Callable[..., Any], *arguments: Any) -> Any:
    """A process of its own that does this, begun; it can be killed."""
    process = _forks.Process(target=_alone, args=(work, arguments))
    process.start()
    return process


def on_processes(number: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """What ``work(*arguments)`` returns in each of so many processes that have met, by rank."""
    results = outcomes(number, work, *arguments, folder=folder)
    for result in results:
        assert not isinstance(result, Failure), result
    return results


def outcomes(number: int, work: Callable[..., Any], *arguments: Any, folder: Path) -> list[Any]:
    """The same, with a ``Failure`` for every process in which something was raised or that was killed."""
    meeting = folder / f"meeting-{uuid4().hex}"
    meeting.mkdir()
    processes = [_forks.Process(target=_run, args=(rank, number, meeting, work, arguments)) for rank in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=_PATIENCE_S)
        process.kill()  # nothing to one that has ended; one that waits for ever fails here and now
        process.join()
    files = [meeting / str(rank) for rank in range(number)]
    return [pickle.loads(file.read_bytes()) if file.exists() else Failure("killed") for file in files]


class Failure(str):
    """A traceback of another process."""


def _alone(work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _be_strict()
    work(*arguments)


def _be_strict() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background ignores it
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)


def _run(rank: int, number: int, meeting: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _be_strict()
    result: Any
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=number)
        result = work(*arguments)
        dist.destroy_process_group()
    except BaseException:
        result = Failure(traceback.format_exc())
    (meeting / str(rank)).write_bytes(pickle.dumps(result))
