"""One process's share of a batch, and what its loss counts for in the whole batch's."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from epilogue.data import Batch
from epilogue.train.mesh import Mesh

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(ids_BT, targets_BT, document_start_BT or None) to the mean over the targets, NaN if there are none."""


def part_of(batch: Batch, mesh: Mesh) -> Batch:
    """This process's part of the tokens of a batch's rows; all of them where sequences are whole.

    Document starts stay those of whole sequences, as attention wants them.
    """
    ids_BT, targets_BT = (x_BT.chunk(mesh.context, dim=1)[mesh.part] for x_BT in (batch.ids_BT, batch.targets_BT))
    return replace(batch, ids_BT=ids_BT, targets_BT=targets_BT)


def num_counted(batch: Batch) -> int:
    """Targets among these rows and tokens alone."""
    return int((batch.targets_BT >= 0).sum())


def share_of_loss(loss: Loss, share: Batch, *, num_targets: int, device: str) -> Tensor:
    """What a share adds to the mean loss over ``num_targets`` predictions.

    A share without a target adds 0 and has gradients of 0. It is computed all the same: other processes wait for its
    part of the weights.
    """
    counted, targets_BT = num_counted(share), share.targets_BT
    if not counted:
        targets_BT = targets_BT.new_zeros(targets_BT.shape)
    starts_BT = None if share.document_start_BT is None else share.document_start_BT.to(device)
    return loss(share.ids_BT.to(device), targets_BT.to(device), starts_BT) * (counted / num_targets)
