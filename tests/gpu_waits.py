"""The host and the GPU: for tests that nothing waits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever lets the host wait for the GPU is an error, as far as PyTorch sees it."""
    _set("error")
    try:
        yield
    finally:
        _set("default")


def _set(mode: Literal["error", "default"]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
