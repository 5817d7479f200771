"""On any number of processes a run is the same but for rounding."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epilogue.train import ModelRecipe, OptimizerRecipe, ParallelRecipe, Progress, Recipe, Trainer
from epilogue.train.batches import IGNORED
from epilogue.train.sharding import whole
from train.material import tiny_recipe
from train.processes import on_processes

# Clamped, normed, grouped, with biases, and no size but the width divides by the processes: 280 rows of the embedding
# do by two and four, 72 of Wqkv too; 25 of the vocabulary's parts of four are not all alike.
MODEL = ModelRecipe(
    size="tiny",
    set={
        "d_model": 48,
        "n_heads": 8,
        "vocab_size": 285,
        "no_bias": False,
        "attn_config": {
            "attn_type": "grouped_query_attention", "kv_n_heads": 2, "clip_qkv": 0.3, "qk_ln": True,
        },
    },
)  # fmt: skip


class PackedWindows:
    """A loader whose sequences are several documents each, and whose documents' last tokens predict nothing."""

    def __init__(self, windows: Any) -> None:
        self._windows = windows

    def batches(self, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index, (ids_BT, targets_BT) in enumerate(self._windows.batches(start=start), start=start):
            generator = torch.Generator().manual_seed(index)
            begins_BT = torch.rand(ids_BT.shape, generator=generator) < 0.2
            begins_BT[:, 0] = True
            position_T = torch.arange(ids_BT.shape[1])
            start_BT = torch.where(begins_BT, position_T, 0).cummax(dim=1).values
            ends_BT = torch.cat([begins_BT[:, 1:], torch.ones_like(begins_BT[:, :1])], dim=1)
            yield ids_BT, targets_BT.masked_fill(ends_BT, IGNORED), start_BT


def train(recipe: Recipe) -> tuple[list[float], float, dict[str, Tensor]]:
    trainer = Trainer(recipe)
    trainer._windows = PackedWindows(trainer._windows)  # type: ignore[assignment]
    seen: list[Progress] = []
    losses: list[float] = []
    real = trainer._train_step
    trainer._train_step = lambda batch: losses.append(real(batch)) or losses[-1]  # type: ignore
    trainer.run(on_step=seen.append)
    assert bool(seen) == trainer.mesh.is_first
    weights = {name: whole(weight).detach().clone() for name, weight in trainer.model.state_dict().items()}
    return losses, trainer.evaluate().loss, weights
