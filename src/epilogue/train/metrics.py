"""What a run is judged by: loss on books it does not learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from epilogue.data import Batch, WindowLoader
from epilogue.train.batches import num_counted, part_of
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
def evaluate(nats: Callable[[Batch], Tensor], windows: WindowLoader, *, num_tokens: int, mesh: Mesh) -> Evaluation:
    """Mean loss over the first rows of a fixed shuffle, the same ones every time and for any number of processes.

    Args:
        nats: this process's part of a batch to the sum over its predicted tokens.
        windows: held-out books, the same for all processes.
        num_tokens: about how many to predict; at least a batch, at most an epoch.
        mesh: the processes, which read different batches.
    """
    tokenizer = windows.shards.tokenizer
    bytes_of_id = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    num_batches = min(max(1, num_tokens // (windows.batch * windows.num_tokens)), windows.batches_per_epoch)
    sums = torch.zeros(3, dtype=torch.float64)
    for index in range(mesh.reader, math.ceil(num_batches / mesh.num_readers) * mesh.num_readers, mesh.num_readers):
        share = part_of(windows[min(index, num_batches - 1)], mesh)
        found = nats(share).item()
        if index < num_batches:  # else it was computed for the others, who need this process's part of the weights
            num_bytes = bytes_of_id[share.targets_BT[share.targets_BT >= 0].numpy()].sum()
            sums += torch.tensor([found, num_bytes, num_counted(share)], dtype=torch.float64)
    together, num_bytes, predicted = mesh.total(sums).tolist()
    return Evaluation(
        loss=together / predicted,
        bits_per_byte=together / math.log(2) / max(1, num_bytes),
        num_tokens=int(predicted),
    )
