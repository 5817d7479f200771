"""What a run is judged by: loss on books it does not learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from epilogue.data import WindowLoader


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss over held-out windows."""

    loss: float
    """Nats a token."""
    bits_per_byte: float
    """Of the UTF-8 text the predicted tokens stand for; comparable between tokenizers."""
    num_tokens: int
    """Tokens predicted."""


@torch.no_grad()
def evaluate(
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor], windows: WindowLoader, *, num_tokens: int, device: str
) -> Evaluation:
    """Mean loss over the first rows of a fixed shuffle, the same ones every time.

    Args:
        loss: (ids_BT, targets_BT, document_start_BT) to mean nats a predicted token.
        windows: held-out books.
        num_tokens: about how many to predict; at least a batch, at most an epoch.
        device: where the loss runs.
    """
    tokenizer = windows.shards.tokenizer
    bytes_of_id = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    batch_tokens = windows.batch * windows.num_tokens
    num_batches = min(max(1, num_tokens // batch_tokens), windows.batches_per_epoch)
    nats, num_bytes, predicted = 0.0, 0, 0
    for batch in islice(windows.batches(), num_batches):
        starts_BT = None if batch.document_start_BT is None else batch.document_start_BT.to(device)
        nats += loss(batch.ids_BT.to(device), batch.targets_BT.to(device), starts_BT).item() * batch.num_targets
        num_bytes += int(bytes_of_id[batch.targets_BT[batch.targets_BT >= 0].numpy()].sum())
        predicted += batch.num_targets
    return Evaluation(loss=nats / predicted, bits_per_byte=nats / math.log(2) / max(1, num_bytes), num_tokens=predicted)
