"""Two processes, each with half of every tensor's rows, take the steps of one, and their state can be put together."""

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from epilogue.train.optimizers import Lion, Muon, NarrowAdamW
from train.processes import on_processes

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any], torch.dtype]] = {
    "lion": (Lion, {"lr": 0.01}, torch.float32),
    "lion 8 bits": (Lion, {"lr": 0.01, "state_bits": 8}, torch.float32),
    "lion bf16": (Lion, {"lr": 0.01, "narrow_weights": "residual"}, torch.bfloat16),
    "adamw": (NarrowAdamW, {"lr": 0.01}, torch.float32),
    "adamw 8 bits": (NarrowAdamW, {"lr": 0.01, "state_bits": 8}, torch.float32),
    "muon": (Muon, {"lr": 0.01}, torch.float32),
}


def whole(x: torch.Tensor) -> torch.Tensor:
    # gloo sends no int16.
    return (x.int() if x.dtype == torch.int16 else x).full_tensor() if isinstance(x, DTensor) else x


def compared() -> dict[str, dict[str, bool]]:
    mesh = init_device_mesh("cpu", (2,))
    report = {}
    for name, (kind, settings, dtype) in OPTIMIZERS.items():
        generator = torch.Generator().manual_seed(0)
        # 7 rows: one process has more than the other. A vector too, but for Muon, which takes matrices only.
        shapes = [(7, 300), (6, 20)] if kind is Muon else [(7, 300), (5,)]
        plain = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        sharded = [distribute_tensor(p.detach().clone(), mesh, [Shard(0)]).requires_grad_() for p in plain]
        optimizers = [kind(plain, **settings), kind(sharded, **settings)]
        for _ in range(5):
            for p, q in zip(plain, sharded, strict=True):
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        report[name] = {
            "weights": all(torch.equal(p, whole(q)) for p, q in zip(plain, sharded, strict=True)),
            "states": all(
                torch.equal(value, whole(optimizers[1].state[q][key]))
                for p, q in zip(plain, sharded, strict=True)
                for key, value in optimizers[0].state[p].items()
            ),
        }
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    reports: list[dict[str, dict[str, bool]]] = on_processes(2, compared, folder=tmp_path_factory.mktemp("sharded"))
    return reports[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_halves_step_like_the_whole(report: dict[str, dict[str, bool]], name: str) -> None:
    assert report[name]["weights"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_laid_out_like_their_weights(report: dict[str, dict[str, bool]], name: str) -> None:
    assert report[name]["states"]
