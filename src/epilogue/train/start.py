"""The weights a run begins with: fresh ones, or those of a checkpoint."""

import torch

from epilogue.checkpoint import load_checkpoint, load_tokenizer, resolve
from epilogue.checkpoint.inventory import departures
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.errors import RecipeError
from epilogue.model import MPT, MPTConfig
from epilogue.text import Tokenizer
from epilogue.train.lora import make_adapted_model
from epilogue.train.recipe import Recipe
from epilogue.train.stages import Stages


def make_model(recipe: Recipe, tokenizer: Tokenizer, *, is_fresh: bool) -> MPT:
    """The recipe's model on the CPU, in the recipe's dtype.

    Args:
        recipe: size, switches and seed of the model, and by choice the checkpoint it begins with.
        tokenizer: what the shards were made with.
        is_fresh: False if a step of the run will be loaded over the weights; they are left as they are then.

    Raises:
        RecipeError: ``model.initialize_from`` has other shapes or another tokenizer.
        CheckpointError: it cannot be read.
    """
    config = recipe.model.config(tokenizer.vocab_size, Stages(recipe).most_context_tokens)
    dtype = torch.bfloat16 if recipe.weights == "bf16" else torch.float32
    if recipe.lora is not None:
        model = make_adapted_model(recipe, config, dtype=dtype)
        _check_tokenizer(str(recipe.model.initialize_from), config, tokenizer)
        return model
    if config.quantization is not None:
        raise RecipeError("model.initialize_from is quantised, and codes do not learn; add lora to the recipe")
    model = MPT(config)
    if not is_fresh:
        return model.to(dtype)
    if recipe.model.initialize_from is None:
        model.init_weights(seed=recipe.seed)
    else:
        _initialize(model, recipe.model.initialize_from, tokenizer)
    return model.to(dtype)


def _initialize(model: MPT, source: str, tokenizer: Tokenizer) -> None:
    start = load_checkpoint(resolve(source), dtype=torch.float32, max_seq_len=_length(model.config))
    if found := departures(start.model.state_dict(), model.config):
        raise RecipeError(
            f"model.initialize_from {source} does not fit the recipe's model ({found}); "
            "set model.size and model.set to what it is"
        )
    _check_tokenizer(source, start.config, tokenizer)
    model.load_state_dict(start.model.state_dict())


def _check_tokenizer(source: str, config: MPTConfig, tokenizer: Tokenizer) -> None:
    directory = resolve(source)
    if (directory / TOKENIZER).is_file() and load_tokenizer(directory, config).fingerprint != tokenizer.fingerprint:
        raise RecipeError(
            f"model.initialize_from {source} has another tokenizer than the shards; prepare them with its "
            f"{TOKENIZER} (--tokenizer)"
        )


def _length(config: MPTConfig) -> int | None:
    return config.max_seq_len if config.has_position_embedding else None
