"""On any number of processes a run is the same but for rounding."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from epilogue.errors import RecipeError
from epilogue.train import ModelRecipe, OptimizerRecipe, ParallelRecipe, Progress, Recipe, Trainer
from epilogue.train.batches import IGNORED, Batch, share_of_loss
from epilogue.train.sharding import whole
from train.material import tiny_recipe
from train.processes import on_processes

# Clamped (it bites), normed, grouped, with biases, and a vocabulary of which not every process has as much.
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


class Trained(NamedTuple):
    losses: list[float]
    held_out: float
    weights: dict[str, Tensor]


def train(recipe: Recipe) -> Trained:
    trainer = Trainer(recipe)
    trainer._windows = PackedWindows(trainer._windows)  # type: ignore[assignment]
    seen: list[Progress] = []
    trainer.run(on_step=seen.append)
    assert bool(seen) == trainer.mesh.is_first
    weights = {name: whole(weight).detach().clone() for name, weight in trainer.model.state_dict().items()}
    return Trained([progress.loss for progress in seen], trainer.evaluate().loss, weights)


def train_all(recipes: list[Recipe]) -> list[Trained]:
    return [train(recipe) for recipe in recipes]


Name = Literal["adamw", "muon"]


def recipe_of(shards: Path, out: Path, name: Name, layout: tuple[int, int, int] = (1, 0, 1)) -> Recipe:
    replicate, shard, context = layout
    return tiny_recipe(
        shards, out / f"{name}-{replicate}-{shard}-{context}", steps=20, model=MODEL, micro_batch_tokens=32,
        optimizer=OptimizerRecipe(name=name, learning_rate=1e-2),
        parallel=ParallelRecipe(replicate=replicate, shard=shard, context=context),
    )  # fmt: skip


def train_layouts(shards: Path, folder: Path, layouts: list[tuple[Name, tuple[int, int, int]]]) -> list[Trained]:
    """What the first process saw; the processes are forked once for all layouts."""
    number = math.prod(layouts[0][1])
    recipes = [recipe_of(shards, folder, name, layout) for name, layout in layouts]
    by_rank = on_processes(number, train_all, recipes, folder=folder)
    for others in by_rank[1:]:
        for one, other in zip(by_rank[0], others, strict=True):
            assert one.held_out == other.held_out
            assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    return by_rank[0]


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: train(recipe_of(shards, folder, name)) for name in get_args(Name)}


# Over 20 steps. Muon makes matrices orthogonal in bf16, where another order of summation shows.
ROUNDING = {"adamw": 3e-6, "muon": 1e-3}


def assert_same_run(found: Trained, wanted: Trained, name: Name) -> None:
    assert len(found.losses) == 20
    assert found.losses[-1] < 0.5 * found.losses[0]
    assert found.losses == pytest.approx(wanted.losses, rel=ROUNDING[name])
    assert found.held_out == pytest.approx(wanted.held_out, rel=ROUNDING[name])


def test_two_processes(shards: Path, tmp_path: Path, alone: dict[str, Trained]) -> None:
    """FSDP, and context parallelism."""
    layouts: list[tuple[Name, tuple[int, int, int]]] = [
        ("adamw", (1, 2, 1)), ("adamw", (1, 1, 2)), ("muon", (1, 2, 1)),
    ]  # fmt: skip
    for (name, _), found in zip(layouts, train_layouts(shards, tmp_path, layouts), strict=True):
        assert_same_run(found, alone[name], name)


def test_four_processes(shards: Path, tmp_path: Path, alone: dict[str, Trained]) -> None:
    """FSDP with context parallelism, HSDP with it."""
    layouts: list[tuple[Name, tuple[int, int, int]]] = [("adamw", (1, 2, 2)), ("adamw", (2, 1, 2))]
    for (name, _), found in zip(layouts, train_layouts(shards, tmp_path, layouts), strict=True):
        assert_same_run(found, alone[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(Name))
def test_every_layout_of_four(shards: Path, tmp_path: Path, alone: dict[str, Trained], name: Name) -> None:
    """Also more processes than heads of keys and values, and copies without parts."""
    layouts: list[tuple[Name, tuple[int, int, int]]] = [
        (name, layout) for layout in [(1, 4, 1), (1, 1, 4), (2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2)]
    ]
    for found in train_layouts(shards, tmp_path, layouts):
        assert_same_run(found, alone[name], name)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parallel": ParallelRecipe(context=3)}, r"parallel\.context 3 does not divide the model's 8 heads"),
        ({"parallel": ParallelRecipe(context=8), "context_tokens": 4}, "8 does not divide context_tokens 4"),
        ({"parallel": ParallelRecipe(context=2)}, "replicate 1 x shard any x context 2 processes and there are 1"),
        ({"parallel": ParallelRecipe(shard=4)}, r"shard 4 .* there are 1; .* torchrun --nproc-per-node"),
        (
            {
                "parallel": ParallelRecipe(context=2),
                "model": replace(MODEL, set=MODEL.set | {"attn_config": {"alibi": False}}),
            },
            "the model has learned positions",
        ),
    ],
)
def test_what_cannot_be_laid_out(shards: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as error:
        Trainer(tiny_recipe(shards, tmp_path, **({"model": MODEL} | changes)))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def refusal(recipe: Recipe) -> str:
    with pytest.raises(RecipeError) as error:
        Trainer(recipe)
    return str(error.value)


def test_a_batch_that_cannot_be_dealt_out(shards: Path, tmp_path: Path) -> None:
    sentences = on_processes(2, refusal, tiny_recipe(shards, tmp_path, micro_batch_tokens=128), folder=tmp_path)
    assert all("128 must be a multiple of micro_batch_tokens 128 times 2" in sentence for sentence in sentences)


def test_a_share_without_a_target_counts_for_nothing() -> None:
    def loss(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(ids_BT.flatten()[:, None] * weight, targets_BT.flatten())

    weight = torch.ones(1, 4, requires_grad=True)
    silent = Batch(torch.ones(1, 3), torch.full((1, 3), IGNORED))
    value = share_of_loss(loss, silent, num_targets=5, device="cpu")
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()
