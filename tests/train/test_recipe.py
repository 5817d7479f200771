"""Recipes are read strictly: whatever is not meant is refused in one sentence that names the key."""

from pathlib import Path
from typing import Any

import pytest

from epilogue.errors import RecipeError
from epilogue.train import ModelRecipe, Recipe, read_recipe

LEAST = "train_shards: a\nvalidation_shards: b\nout: c\nsteps: 10\n"


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, overrides=overrides)


def test_a_recipe_has_defaults_for_all_but_four_keys(tmp_path: Path) -> None:
    assert read(tmp_path, LEAST) == Recipe(train_shards="a", validation_shards="b", out="c", steps=10)


def test_everything_can_be_set(tmp_path: Path) -> None:
    text = LEAST + (
        "model: {size: tiny, set: {d_model: 32, attn_config: {alibi_bias_max: 12}}, initialize_from: null}\n"
        "optimizer: {name: adamw, learning_rate: 4e-3, weight_decay: 0, betas: [0.8, 9e-1]}\n"
        "device: cpu\ncompile: false\n"
    )
    recipe = read(tmp_path, text)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (0.004, 0.0)
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert (recipe.device, recipe.compile) == ("cpu", False)
    config = recipe.model.config(300, 64)
    assert (config.d_model, config.attn_config.alibi_bias_max, config.attn_config.alibi) == (32, 12, True)


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, LEAST, "steps=7", "optimizer.learning_rate=1e-2", "model.set.attn_config.clip_qkv=6",
        "model.size=tiny", "out=d=e",
    )  # fmt: skip
    assert (recipe.steps, recipe.optimizer.learning_rate, recipe.out) == (7, 0.01, "d=e")
    assert recipe.model == ModelRecipe(size="tiny", set={"attn_config": {"clip_qkv": 6}})


def test_micro_batches_may_have_any_size_that_divides(tmp_path: Path) -> None:
    sizes = "context_tokens: 8\nmicro_batch_tokens: 24\nbatch_tokens: 72\n"
    assert read(tmp_path, LEAST + sizes).batch_tokens == 72


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rates: 1\n", "unknown key learning_rates; known are train_shards"),
        ("step: 5\n", "unknown key step; did you mean steps?"),
        ("optimizer: {learning_rat: 1}\n", "unknown key optimizer.learning_rat; did you mean learning_rate?"),
        ("3: 4\n", "unknown key 3"),
        ("warmup_steps: 1.5\n", "warmup_steps is 1.5, wanted a whole number"),
        ("warmup_steps: true\n", "warmup_steps is True, wanted a whole number"),
        ("warmup_steps: 1e3\n", "warmup_steps is '1e3', wanted a whole number"),
        ("compile: 1\n", "compile is 1, wanted true or false"),
        ("compile: 'yes'\n", "compile is 'yes', wanted true or false"),
        ("cooldown_share: much\n", "cooldown_share is 'much', wanted a number"),
        ("cooldown_share: true\n", "cooldown_share is True, wanted a number"),
        ("cooldown_share: .nan\n", "cooldown_share must be from 0 to 1, got nan"),
        ("cooldown_share: 1.01\n", "cooldown_share must be from 0 to 1, got 1.01"),
        ("device: tpu\n", "device is 'tpu', wanted auto or cpu or cuda"),
        ("device: [cpu]\n", "device is ['cpu'], wanted auto or cpu or cuda"),
        ("model: tiny\n", "model is 'tiny', wanted a table of settings"),
        ("model:\n", "model is None, wanted a table of settings"),
        ("model: {size: huge}\n", "model.size is 'huge'; known are tiny"),
        ("model: {set: [1]}\n", "model.set is [1], wanted a table of settings"),
        ("model: {set: {1: 2}}\n", "model.set is {1: 2}, wanted a table of settings"),
        ("model: {set: {attn_config: null}}\n", "model.set.attn_config is None, wanted a table of settings"),
        ("model: {initialize_from: 5}\n", "model.initialize_from is 5, wanted text or null"),
        ("optimizer: {name: sgd}\n", "optimizer.name is 'sgd', wanted muon or adamw"),
        ("optimizer: {betas: 0.9}\n", "optimizer.betas is 0.9, wanted 2 numbers in brackets"),
        ("optimizer: {betas: [0.9]}\n", "optimizer.betas is (0.9,), wanted 2 numbers in brackets"),
        ("optimizer: {betas: [0.9, x]}\n", "optimizer.betas is (0.9, 'x'), wanted 2 numbers in brackets"),
        ("optimizer: {betas: [0.9, 1]}\n", "optimizer.betas must be two numbers in [0, 1), got (0.9, 1.0)"),
        ("optimizer: {learning_rate: 0}\n", "optimizer.learning_rate must be above 0, got 0.0"),
        ("optimizer: {learning_rate: .inf}\n", "optimizer.learning_rate must be above 0, got inf"),
        (f"optimizer: {{learning_rate: 1{'0' * 400}}}\n", "wanted a number"),
        ("optimizer: {clip_norm: -1}\n", "optimizer.clip_norm must be above 0, got -1.0"),
        ("optimizer: {weight_decay: -0.1}\n", "optimizer.weight_decay must be 0 or more, got -0.1"),
        ("optimizer: {momentum: 1}\n", "optimizer.momentum must be in [0, 1), got 1.0"),
        ("context_tokens: 0\n", "context_tokens must be at least 1, got 0"),
        ("save_every_steps: 0\n", "save_every_steps must be at least 1, got 0"),
        ("evaluate_every_steps: -1\n", "evaluate_every_steps must be at least 1, got -1"),
        ("warmup_steps: -1\n", "warmup_steps must be 0 or more, got -1"),
        ("seed: -1\n", "seed must be from 0 to 2**32 - 1, got -1"),
        ("batch_tokens: 100\n", "batch_tokens 100 must be a multiple of micro_batch_tokens 65536"),
        ("micro_batch_tokens: 1024\n", "and that of context_tokens 2048"),
        ("steps: 5\n", "is no YAML: the key steps stands there twice, again in line 5"),
        ("optimizer: {momentum: 0, momentum: 0}\n", "the key momentum stands there twice"),
        ("a: [\n", "is no YAML"),
        ("[a]: 1\n", "is no YAML"),
    ],
)  # fmt: skip
def test_what_is_not_meant_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(tmp_path, LEAST + text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["train_shards", "validation_shards", "out", "steps"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    text = "".join(line for line in LEAST.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    with pytest.raises(RecipeError, match=f"^the key {key} is missing"):
        read(tmp_path, text)


@pytest.mark.parametrize("text", ["", "- 1\n", "steps\n"])
def test_a_file_without_settings_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="must be a table of settings"):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.yaml cannot be read \(No such file"):
        read_recipe(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"out: \xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml is no YAML"):
        read_recipe(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "takes key=value, got 'steps'"),
        ("=5", "takes key=value"),
        ("model.=5", "takes key=value"),
        ("steps.more=5", "steps is no table"),
        ("steps=[1", "the value is no YAML"),
        ("stesp=5", "did you mean steps"),
        ("steps=", "steps is None, wanted a whole number"),
    ],
)
def test_overrides_are_as_strict(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        read(tmp_path, LEAST, override)


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"d_modle": 8}, "unknown key 'd_modle'; the nearest known key is 'd_model'"),
        ({"d_model": 7}, "d_model 7 does not divide by n_heads 4"),
        ({"vocab_size": 299}, "model.set.vocab_size is 299, but the run needs 300"),
        ({"max_seq_len": 16}, "model.set.max_seq_len is 16, but the run needs 64"),
        ({"attn_config": {"attn_pdrop": 0.1}}, "attn_pdrop is 0.1"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(switches: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        ModelRecipe(size="tiny", set=switches).config(300, 64)


def test_a_model_may_have_room_for_more() -> None:
    config = ModelRecipe(size="tiny", set={"vocab_size": 512, "max_seq_len": 128}).config(300, 64)
    assert (config.vocab_size, config.max_seq_len) == (512, 128)
