"""On any number of processes a run is the same but for rounding."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint, merge_adapter
from epilogue.data import Batch
from epilogue.errors import RecipeError
from epilogue.train import ModelRecipe, OptimizerRecipe, ParallelRecipe, Progress, Recipe, Trainer
from epilogue.train.batches import share_of_loss
from epilogue.train.recipe_parts import LoraRecipe, MemoryRecipe, StageRecipe
from epilogue.train.sharding import whole
from train.material import tiny_recipe, write_shards
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
Layout = tuple[int, int, int]
"""replicate, shard, context."""
ALONE: Layout = (1, 0, 1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Books so short that rows hold several, and some rows are not filled."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("train", "validation"):
        write_shards(folder / name, num_books=9, sentences=1, text="The tide came in. ")
    return folder


class Trained(NamedTuple):
    losses: list[float]
    held_out: float
    weights: dict[str, Tensor]
    num_skipped: int


def train(recipe: Recipe) -> Trained:
    trainer = Trainer(recipe)
    if recipe.optimizer.spike_z is not None:  # as if the loss had been far lower for a while
        trainer._guard.load([100, 1.0, 0.01, 0, 0])
    seen: list[Progress] = []
    trainer.run(on_step=seen.append)
    assert bool(seen) == trainer.mesh.is_first
    weights = {name: whole(weight).detach().clone() for name, weight in trainer.model.state_dict().items()}
    losses = [progress.loss for progress in seen]
    return Trained(losses, trainer.evaluate().loss, weights, trainer._guard.num_skipped)


def train_all(recipes: list[Recipe]) -> list[Trained]:
    return [train(recipe) for recipe in recipes]


def laid_out(recipe: Recipe, layout: Layout) -> Recipe:
    replicate, shard, context = layout
    name = f"{Path(recipe.out).name}-{replicate}-{shard}-{context}"
    parallel = ParallelRecipe(replicate=replicate, shard=shard, context=context)
    return replace(recipe, out=str(Path(recipe.out).with_name(name)), parallel=parallel)


def in_layouts(cases: list[tuple[Recipe, Layout]], *, folder: Path) -> list[Trained]:
    """What the first process saw; the processes are forked once for all."""
    by_rank = on_processes(
        math.prod(cases[0][1]), train_all, [laid_out(recipe, layout) for recipe, layout in cases], folder=folder
    )
    for others in by_rank[1:]:
        for one, other in zip(by_rank[0], others, strict=True):
            assert one.held_out == other.held_out
            assert one.num_skipped == other.num_skipped
            assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    return by_rank[0]


Name = Literal["adamw", "muon"]
# Over 20 steps. Muon makes matrices orthogonal in bf16, where another order of summation shows.
ROUNDING = {"adamw": 1e-6, "muon": 1e-3}


def plain(shards: Path, folder: Path, name: Name) -> Recipe:
    optimizer = OptimizerRecipe(name=name, learning_rate=5e-3)
    return tiny_recipe(shards, folder / name, steps=20, model=MODEL, micro_batch_tokens=32, optimizer=optimizer)


@pytest.fixture(scope="module")
def alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: train(plain(packed, folder, name)) for name in get_args(Name)}


def assert_same_run(found: Trained, wanted: Trained, rounding: float) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=rounding)
    assert found.held_out == pytest.approx(wanted.held_out, rel=rounding)
    assert found.num_skipped == wanted.num_skipped


def assert_same_20_steps(found: Trained, wanted: Trained, name: Name) -> None:
    assert len(found.losses) == 20
    assert found.losses[-1] < 0.5 * found.losses[0]
    assert_same_run(found, wanted, ROUNDING[name])


def test_rows_hold_several_documents_and_gaps(packed: Path, tmp_path: Path) -> None:
    """Or the tests below would not say what they should."""
    batches = [Trainer(plain(packed, tmp_path, "adamw"))._windows[index] for index in range(20)]
    assert sum(batch.document_start_BT is not None for batch in batches) > 10
    assert any((batch.targets_BT < 0).any() for batch in batches)
    assert len({batch.num_targets for batch in batches}) > 1


def test_two_processes(packed: Path, tmp_path: Path, alone: dict[str, Trained]) -> None:
    """FSDP, and context parallelism."""
    cases: list[tuple[Name, Layout]] = [("adamw", (1, 2, 1)), ("adamw", (1, 1, 2)), ("muon", (1, 2, 1))]
    found = in_layouts([(plain(packed, tmp_path, name), layout) for name, layout in cases], folder=tmp_path)
    for (name, _), one in zip(cases, found, strict=True):
        assert_same_20_steps(one, alone[name], name)


def test_four_processes(packed: Path, tmp_path: Path, alone: dict[str, Trained]) -> None:
    """FSDP with context parallelism, HSDP with it."""
    recipe = replace(plain(packed, tmp_path, "adamw"), micro_batch_tokens=64)
    for found in in_layouts([(recipe, (1, 2, 2)), (recipe, (2, 1, 2))], folder=tmp_path):
        assert_same_20_steps(found, alone["adamw"], "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(Name))
def test_every_layout_of_four(packed: Path, tmp_path: Path, alone: dict[str, Trained], name: Name) -> None:
    """Also more processes than heads of keys and values, and copies without parts."""
    layouts: list[Layout] = [(1, 4, 1), (1, 1, 4), (2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2)]
    for found in in_layouts([(plain(packed, tmp_path, name), layout) for layout in layouts], folder=tmp_path):
        assert_same_20_steps(found, alone[name], name)


def with_everything(shards: Path, out: Path, start: Path) -> dict[str, Recipe]:
    """Whatever else a recipe has that touches what processes exchange."""
    adamw = OptimizerRecipe(name="adamw", learning_rate=5e-3)
    base = tiny_recipe(shards, out / "staged", steps=5, model=MODEL, micro_batch_tokens=32, optimizer=adamw)
    stages = (StageRecipe(from_step=2, context_tokens=32, alibi_bias_max=16, bias_ramp_steps=3),)
    made_again = MemoryRecipe(checkpointing="selective", mlp_tile_tokens=5)
    return {
        "staged": replace(base, stages=stages, memory=made_again, epsilon=1e-6),
        "full": replace(base, out=str(out / "full"), memory=replace(made_again, checkpointing="full", offload=True)),
        "skipping": replace(base, out=str(out / "skipping"), optimizer=replace(adamw, spike_z=5.0)),
        "lora": replace(
            base, out=str(out / "lora"), lora=LoraRecipe(rank=3), memory=made_again,
            model=ModelRecipe(size=None, initialize_from=str(start / "dense")),
        ),
    }  # fmt: skip


def test_all_that_a_recipe_has(packed: Path, tmp_path: Path, start: Path) -> None:
    """Stages, what is made again, offloading, skipped steps and adapters, in parts of weights and of sequences."""
    recipes = with_everything(packed, tmp_path, start)
    layouts: dict[str, Layout] = {"staged": (1, 1, 2), "full": (1, 2, 1), "skipping": (1, 2, 1), "lora": (1, 1, 2)}
    found = in_layouts([(recipes[name], layouts[name]) for name in recipes], folder=tmp_path)
    for (name, recipe), one in zip(recipes.items(), found, strict=True):
        assert_same_run(one, train(laid_out(recipe, ALONE)), ROUNDING["adamw"])
        assert one.num_skipped == (5 if name == "skipping" else 0)
    log = (tmp_path / "skipping-1-2-1/log.jsonl").read_text().splitlines()
    skipped = [line["num_skipped"] for line in map(json.loads, log) if "skipped_z" in line]
    assert skipped == [1, 2, 3, 4, 5], "one of the processes logs"
    merge_adapter(tmp_path / "lora-1-1-2/step-0000005", tmp_path / "merged")
    ids_BT = torch.arange(40)[None]
    merged, adapted = (load_checkpoint(tmp_path / "merged").model, Trainer(laid_out(recipes["lora"], ALONE)).model)
    assert (merged(ids_BT) - adapted.eval()(ids_BT)).abs().max() < 1e-4 * merged(ids_BT).abs().max()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parallel": ParallelRecipe(context=3)}, r"parallel\.context 3 does not divide the model's 8 heads"),
        ({"parallel": ParallelRecipe(context=8), "context_tokens": 4}, "8 does not divide context_tokens 4"),
        (
            {
                "parallel": ParallelRecipe(context=2),
                "stages": (StageRecipe(from_step=3, context_tokens=1),),
            },
            "2 does not divide context_tokens 1 of the stage from step 3",
        ),
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


def refusals(recipes: list[Recipe]) -> list[str]:
    sentences = []
    for recipe in recipes:
        with pytest.raises(RecipeError) as error:
            Trainer(recipe)
        sentences.append(str(error.value))
    return sentences


def test_a_batch_that_cannot_be_dealt_out(shards: Path, tmp_path: Path) -> None:
    whole_batch = tiny_recipe(shards, tmp_path, micro_batch_tokens=128)
    later = replace(whole_batch, micro_batch_tokens=64, stages=(StageRecipe(from_step=3, batch_tokens=64),))
    for first, second in on_processes(2, refusals, [whole_batch, later], folder=tmp_path):
        assert "128 must be a multiple of micro_batch_tokens 128 times 2" in first
        assert "64 must be a multiple of micro_batch_tokens 64 times 2" in second
        assert "from step 3" in second


def test_a_share_without_a_target_counts_for_nothing() -> None:
    def loss(ids_BT: Tensor, targets_BT: Tensor, document_start_BT: Tensor | None) -> Tensor:
        return torch.nn.functional.cross_entropy(ids_BT.flatten()[:, None] * weight, targets_BT.flatten())

    weight = torch.ones(1, 4, requires_grad=True)
    silent = Batch(
        ids_BT=torch.ones(1, 3), targets_BT=torch.full((1, 3), -100), document_start_BT=None, num_targets=5, num_pairs=9
    )
    value = share_of_loss(loss, silent, num_targets=5, device="cpu")
    value.backward()
    assert value.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()
