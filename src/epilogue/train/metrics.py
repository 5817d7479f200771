"""What a run is judged by: loss on books it does not learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from epilogue.data import WindowLoader
from epilogue.train.batches import IGNORED, Batch, shares
from epilogue.train.mesh import Mesh


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
def evaluate(loss: Callable[[Batch], Tensor], windows: WindowLoader, *, num_tokens: int, mesh: Mesh) -> Evaluation:
    """Mean loss over the first windows of a fixed shuffle, the same ones every time and for any number of processes.

    Args:
        loss: this process's share of a batch to the sum of its nats.
        windows: held-out books, one window a batch.
        num_tokens: about how many to predict; at least a batch, at most an epoch.
        mesh: the processes, which read different windows.
    """
    tokenizer = windows.shards.tokenizer
    bytes_of_id = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    num_batches = min(max(1, num_tokens // (windows.batch * windows.num_tokens)), windows.batches_per_epoch)
    held_out = islice(windows.batches(), num_batches)
    sums = torch.zeros(3, dtype=torch.float64)
    while several := [Batch(*batch) for batch in islice(held_out, mesh.num_readers)]:
        # A process that is left over computes the first one again, for nothing: the others need its weights.
        together = several + [_silent(several[0])] * (mesh.num_readers - len(several))
        joined = Batch(*(torch.cat(column) for column in zip(*(b[:2] for b in together), strict=True)))
        for share in shares(joined, mesh, rows=windows.batch):
            counted = share.targets_BT[share.targets_BT != IGNORED].numpy()
            nats = loss(share).item()
            sums += torch.tensor([nats, bytes_of_id[counted].sum(), len(counted)], dtype=torch.float64)
    nats, num_bytes, predicted = mesh.total(sums).tolist()
    return Evaluation(
        loss=nats / predicted, bits_per_byte=nats / math.log(2) / max(1, num_bytes), num_tokens=int(predicted)
    )


def _silent(batch: Batch) -> Batch:
    return batch._replace(targets_BT=torch.full_like(batch.targets_BT, IGNORED))
