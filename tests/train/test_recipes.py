"""The recipes of this repository: read strictly, and a run of each, scaled down by --set."""

from dataclasses import replace
from pathlib import Path

import pytest

from epilogue.checkpoint import load_config, merge_adapter, save_checkpoint
from epilogue.data import Shards
from epilogue.model import MPT, NAMED_SIZES, num_parameters
from epilogue.quant import HeldOut, Job, Scheme, quantise_checkpoint
from epilogue.train import Progress, Recipe, Trainer, read_recipe
from epilogue.train.stages import Stages

RECIPES = Path(__file__).parents[2] / "recipes"
# A ten-thousandth of the tokens, on the CPU; what makes a recipe what it is stays as it is.
SMALLER = (
    "device=cpu", "context_tokens=16", "batch_tokens=64", "micro_batch_tokens=32", "steps=3", "evaluate_tokens=32",
)  # fmt: skip
LONGER = "stages=[{from_step: 2, context_tokens: 32, micro_batch_tokens: 64, alibi_bias_max: 16, bias_ramp_steps: 2}]"


@pytest.fixture(scope="module")
def mpt(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something of MPT-7B's kind, and in 4 bits."""
    folder = tmp_path_factory.mktemp("mpt")
    config = replace(NAMED_SIZES["tiny"], vocab_size=Shards(shards / "train").tokenizer.vocab_size + 8)
    model = MPT(config)
    model.init_weights(seed=1)
    state = model.state_dict()
    save_checkpoint(folder / "dense", state, config, tokenizer_file=shards / "train/tokenizer.json")
    held_out = HeldOut([list(range(40))], 40)
    quantise_checkpoint(
        Job(
            source=folder / "dense", out=folder / "4bit", scheme=Scheme(group_size=16), method="rtn",
            calibration=[], held_out=held_out,
        )
    )  # fmt: skip
    return folder


def ran(name: str, shards: Path, out: Path, *settings: str) -> tuple[Trainer, list[Progress]]:
    folders = [f"train_shards={shards / 'train'}", f"validation_shards={shards / 'validation'}", f"out={out}"]
    trainer = Trainer(read_recipe(RECIPES / f"{name}.yaml", overrides=[*SMALLER, *folders, *settings]))
    seen: list[Progress] = []
    trainer.run(on_step=seen.append)
    assert len(seen) == 3
    assert (out / "step-0000003").is_dir()
    return trainer, seen


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_it_can_be_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert Stages(recipe).most_context_tokens in (2048, 65_536)


def shape_of(recipe: Recipe) -> tuple[int, int]:
    config = recipe.model.config(8192, Stages(recipe).most_context_tokens)
    return num_parameters(config), config.max_seq_len


def test_the_models_have_the_sizes_they_should() -> None:
    assert shape_of(read_recipe(RECIPES / "tiny.yaml")) == (23_075_328, 65_536)
    parameters, length = shape_of(read_recipe(RECIPES / "small.yaml"))
    assert (round((parameters - 8192 * 768) / 1e6), length) == (85, 65_536)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_from_nothing(shards: Path, tmp_path: Path, name: str) -> None:
    heads = "model.set={d_model: 32, n_heads: 4, n_layers: 2}"
    trainer, _ = ran(name, shards, tmp_path, heads, LONGER)
    assert trainer._windows.num_tokens == 32
    config = load_config(tmp_path / "step-0000003")
    assert (config.max_seq_len, config.attn_config.alibi_bias_max) == (32, 12)


def test_the_whole_of_a_loaded_model(shards: Path, tmp_path: Path, mpt: Path) -> None:
    start = f"model.initialize_from={mpt / 'dense'}"
    trainer, seen = ran("storywriter-7b", shards, tmp_path, start, "memory.mlp_tile_tokens=5")
    assert trainer.model.config.attn_config.clip_qkv == 6
    assert 8 < trainer.model.config.attn_config.alibi_bias_max < 16
    assert seen[-1].learning_rate < 5e-6


def test_adapters_beside_four_bits(shards: Path, tmp_path: Path, mpt: Path) -> None:
    start = f"model.initialize_from={mpt / '4bit'}"
    ran("storywriter-7b-qlora-24gb", shards, tmp_path / "run", start, "memory.mlp_tile_tokens=5")
    assert merge_adapter(tmp_path / "run/step-0000003", tmp_path / "merged")
    assert load_config(tmp_path / "merged").vocab_size == load_config(mpt / "dense").vocab_size
