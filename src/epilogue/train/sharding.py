"""Weights in parts over the processes of a run: PyTorch's FSDP2, and its hybrid with copies (HSDP)."""

from itertools import chain

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from epilogue.model import MPT
from epilogue.train.mesh import Mesh


def shard_weights(model: MPT, mesh: Mesh) -> None:
    """Split every parameter by rows; a block's are put together while it works, the others for the whole pass.

    Parameters are gathered in their own dtype. Gradients are summed over all processes in fp32, not averaged: each
    process's loss must be its share of the whole batch's.
    """
    if mesh.weights is None:
        return
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in model.transformer.blocks:
        fully_shard(block, mesh=mesh.weights, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh.weights, mp_policy=policy, reshard_after_forward=False)
    for module in chain([model], model.transformer.blocks):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # The loop calls the loss, which need not come by way of ``forward``.
    register_fsdp_forward_method(model, "loss")


@torch.no_grad()
def place(parameter: Tensor, whole: Tensor) -> None:
    """Copy a whole weight, which every process has, into a parameter or this process's part of it."""
    if isinstance(parameter, DTensor):
        on_device = whole.to(parameter.device, parameter.dtype)
        whole = distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(whole)


def whole(x: Tensor) -> Tensor:
    """A tensor put together from its parts; as it is if it has none."""
    return x.full_tensor() if isinstance(x, DTensor) else x
