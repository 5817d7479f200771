"""What a run is judged by: speed, and loss on books it does not learn from."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epilogue.data import Shards, WindowLoader


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss over held-out windows."""

    loss: float
    """Nats a token."""
    bits_per_byte: float
    """Of the UTF-8 text the predicted tokens stand for; comparable between tokenizers."""
    num_tokens: int


def evaluate(
    loss: Callable[[Tensor, Tensor], Tensor], shards: Shards, *, context_tokens: int, num_tokens: int, device: str
) -> Evaluation:
    """Mean loss over the first windows of a fixed shuffle, the same ones every time.

    Args:
        loss: (ids_BT, targets_BT) to mean nats a token.
        shards: held-out books.
        context_tokens: tokens a window.
        num_tokens: about how many to predict; at least one window.
        device: where the loss runs.
    """
    bytes_of_id = np.array([len(shards.tokenizer.token_bytes(i)) for i in range(shards.tokenizer.vocab_size)])
    windows = WindowLoader(shards, num_tokens=context_tokens, batch=1, seed=0).batches()
    count = max(1, num_tokens // context_tokens)
    nats, num_bytes = 0.0, 0
    with torch.no_grad():
        for _ in range(count):
            ids_BT, targets_BT = next(windows)
            nats += loss(ids_BT.to(device), targets_BT.to(device)).item() * targets_BT.numel()
            num_bytes += int(bytes_of_id[targets_BT.numpy()].sum())
    predicted = count * context_tokens
    return Evaluation(loss=nats / predicted, bits_per_byte=nats / math.log(2) / max(1, num_bytes), num_tokens=predicted)


class Speed:
    """Tokens per second since the last look."""

    def __init__(self) -> None:
        self._time_s, self._tokens = time.perf_counter(), 0

    def count(self, num_tokens: int) -> None:
        """Tokens that a step has seen."""
        self._tokens += num_tokens

    def look(self) -> float:
        """Tokens per second since construction or the last look, which starts anew."""
        now = time.perf_counter()
        rate = self._tokens / max(now - self._time_s, 1e-9)
        self._time_s, self._tokens = now, 0
        return rate
