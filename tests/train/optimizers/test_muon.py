"""Muon on matrices in parts is torch's on whole ones, to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from epilogue.train.optimizers import Muon
from train.processes import on_processes

# Wide, tall, with a last part that is smaller, with fewer rows than processes; more matrices than processes.
SHAPES = [(8, 6), (5, 9), (7, 3), (1, 4), (8, 6)]


def material() -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return weights, [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(3)]


def optimized(weights: list[Tensor], gradients: list[list[Tensor]], kind: type[torch.optim.Muon]) -> list[Tensor]:
    parameters = [nn.Parameter(weight) for weight in weights]
    optimizer = kind(parameters, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def optimized_in_parts() -> list[Tensor]:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    weights, gradients = material()

    def parted(xs: list[Tensor]) -> list[Tensor]:
        return [distribute_tensor(x, mesh, [Shard(0)]) for x in xs]

    done = optimized(parted(weights), [parted(step) for step in gradients], Muon)
    return [x.full_tensor() for x in done if isinstance(x, DTensor)]


@pytest.mark.parametrize("number", [2, 3])
def test_parts_or_whole(tmp_path: Path, number: int) -> None:
    wanted = optimized(*material(), torch.optim.Muon)
    for found in on_processes(number, optimized_in_parts, folder=tmp_path):
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_whole_matrices_are_left_to_torch() -> None:
    wanted = optimized(*material(), torch.optim.Muon)
    assert all(map(torch.equal, optimized(*material(), Muon), wanted))
