"""One process's share of a batch, and what its loss counts for in the whole batch's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from epilogue.train.mesh import Mesh

IGNORED = -100
"""The target of a position whose prediction counts for nothing, as PyTorch's cross-entropy has it."""


class Batch(NamedTuple):
    """Sequences to learn from: what a loader gives, or one process's share of it."""

    ids_BT: Tensor
    targets_BT: Tensor
    """Of each token the next one, or ``IGNORED``."""
    document_start_BT: Tensor | None = None
    """Where several documents are packed into a sequence: of every token its document's first position in the whole
    sequence, also where ids and targets are those of a part."""

    @property
    def num_targets(self) -> int:
        """Predictions that count."""
        return int((self.targets_BT != IGNORED).sum())


def shares(batch: Batch, mesh: Mesh, *, rows: int) -> list[Batch]:
    """What this process computes of a batch: of its sequences, ``rows`` at a time, its part of the tokens.

    The one place that knows which process reads what.
    """
    mine = [None if x is None else x.chunk(mesh.num_readers)[mesh.reader].split(rows) for x in batch]
    ids, targets, starts = mine
    assert ids is not None
    assert targets is not None
    return [
        Batch(_part(ids[i], mesh), _part(targets[i], mesh), None if starts is None else starts[i])
        for i in range(len(ids))
    ]


def share_of_loss(loss: Callable[..., Tensor], share: Batch, *, num_targets: int, device: str) -> Tensor:
    """What a share adds to the mean loss over all ``num_targets`` predictions of a batch.

    Args:
        loss: (ids_BT, targets_BT, and document_start_BT if there are any) to the mean over the share's own targets.
        share: on the host. One without a target is computed for nothing, as the other processes expect.
        num_targets: of the whole batch.
        device: where the loss runs.
    """
    own = share.num_targets
    if not own:
        share = share._replace(targets_BT=torch.zeros_like(share.targets_BT))
    on_device = (x.to(device, non_blocking=True) for x in share if x is not None)
    return loss(*on_device) * (own / max(1, num_targets))


def _part(x_BT: Tensor, mesh: Mesh) -> Tensor:
    return x_BT.chunk(mesh.context, dim=1)[mesh.part]
