"""Texts to ids by several processes, in the order they came.

The processes are started afresh and import this part of the package alone, so they are there within a second.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from epilogue.errors import CapacityError
from epilogue.text.tokenizer import Tokenizer

Item = TypeVar("Item")
Ids = npt.NDArray[np.uint32]
# Texts a worker has before it or behind it, so that a long one holds nobody up; they are in memory.
_TEXTS_AHEAD = 4


def encode_in_order(
    items: Iterable[tuple[Item, str]], tokenizer: Tokenizer, *, num_workers: int = 1
) -> Iterator[tuple[Item, Ids]]:
    """What comes with each text, and the text's ids, uint32; each text whole, the same for any number of workers.

    Raises:
        CapacityError: a worker died.
        ValueError: fewer than one worker.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if num_workers == 1:
        for item, text in items:
            yield item, np.array(tokenizer.encode(text), np.uint32)
        return
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(tokenizer,)
    ) as pool:
        waiting: deque[tuple[Item, Future[Ids]]] = deque()
        try:
            for item, text in items:
                waiting.append((item, pool.submit(_encode_in_worker, text)))
                if len(waiting) > _TEXTS_AHEAD * num_workers:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        except BrokenProcessPool as error:
            raise CapacityError(
                "a process that encodes died, perhaps for want of memory; the same command with fewer --workers goes on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[Item, Future[Ids]]]) -> tuple[Item, Ids]:
    item, future = waiting.popleft()
    return item, future.result()


# A worker process gets its tokenizer once, not with every text.
_of_this_worker: dict[str, Any] = {}


def _begin_worker(tokenizer: Tokenizer) -> None:
    _of_this_worker["tokenizer"] = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed could not tell its workers to end."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(text: str) -> Ids:
    return np.array(_of_this_worker["tokenizer"].encode(text), np.uint32)
