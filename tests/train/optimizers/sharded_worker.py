"""One of two processes of test_sharded.py: steps on sharded and on whole parameters, compared."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Muon, Optimizer

from epilogue.train.optimizers import Lion, NarrowAdamW

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


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
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
        exact = kind is not Muon
        report[name] = {
            "weights": all(
                torch.equal(p, whole(q)) if exact else torch.allclose(p, whole(q), rtol=1e-2, atol=1e-3)
                for p, q in zip(plain, sharded, strict=True)
            ),
            "states": all(
                torch.equal(value, whole(optimizers[1].state[q][key]))
                for p, q in zip(plain, sharded, strict=True)
                for key, value in optimizers[0].state[p].items()
            ),
        }
    if rank == 0:
        (folder / "report.json").write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
