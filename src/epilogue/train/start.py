"""The model of a run on its processes, and the weights it begins with: fresh ones, or those of a checkpoint."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint, load_tokenizer, resolve
from epilogue.checkpoint.inventory import departures, empty_model
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.errors import RecipeError
from epilogue.model import MPT, MPTConfig
from epilogue.text import Tokenizer
from epilogue.train.context import split_context
from epilogue.train.lora import make_adapted_model
from epilogue.train.mesh import Mesh
from epilogue.train.recipe import Recipe
from epilogue.train.sharding import place, shard_weights
from epilogue.train.stages import Stages


def make_model(
    recipe: Recipe, config: MPTConfig, tokenizer: Tokenizer, mesh: Mesh, *, device: str, newest: Path | None
) -> MPT:
    """The recipe's model in the recipe's dtype, laid out over the processes.

    Args:
        recipe: seed and dtype of the model, and by choice the checkpoint it begins with, and adapters.
        config: its architecture.
        tokenizer: what the shards were made with.
        mesh: the processes.
        device: where this process computes.
        newest: the step of the run that will be loaded over the weights, which are arbitrary then; adapters are
            loaded here, and what they stand beside is always that of the start. None at the beginning.

    Raises:
        RecipeError: ``model.initialize_from`` has other shapes or another tokenizer.
        CheckpointError: it cannot be read, or the step has other adapters.

    Memory: on the device this process's part and one weight; on the host the checkpoint to begin with, which adapters
    are put beside there.
    """
    dtype = torch.bfloat16 if recipe.weights == "bf16" else torch.float32
    if recipe.lora is not None:
        model = make_adapted_model(recipe, config, dtype=dtype, newest=newest)
        _check_tokenizer(str(recipe.model.initialize_from), config, tokenizer)
        return _laid_out(model, recipe, mesh).to(device)
    if config.quantization is not None:
        raise RecipeError("model.initialize_from is quantised, and codes do not learn; add lora to the recipe")
    model = _laid_out(empty_model(config).to(dtype), recipe, mesh).to_empty(device=device)
    if newest is None:
        parameters = dict(model.named_parameters())
        for name, weight in _first_weights(recipe, config, tokenizer):
            place(parameters[name], weight)
    return model


def _laid_out(model: MPT, recipe: Recipe, mesh: Mesh) -> MPT:
    split_context(model, mesh, num_tokens=Stages(recipe).most_context_tokens)
    shard_weights(model, mesh)
    return model


def _first_weights(recipe: Recipe, config: MPTConfig, tokenizer: Tokenizer) -> Iterable[tuple[str, Tensor]]:
    source = recipe.model.initialize_from
    if source is None:
        return empty_model(config).fresh_weights(seed=recipe.seed)
    start = load_checkpoint(resolve(source), dtype=torch.float32, max_seq_len=_length(config))
    if found := departures(start.model.state_dict(), config):
        raise RecipeError(
            f"model.initialize_from {source} does not fit the recipe's model ({found}); "
            "set model.size and model.set to what it is"
        )
    _check_tokenizer(source, start.config, tokenizer)
    return start.model.state_dict().items()


def _check_tokenizer(source: str, config: MPTConfig, tokenizer: Tokenizer) -> None:
    directory = resolve(source)
    if (directory / TOKENIZER).is_file() and load_tokenizer(directory, config).fingerprint != tokenizer.fingerprint:
        raise RecipeError(
            f"model.initialize_from {source} has another tokenizer than the shards; prepare them with its "
            f"{TOKENIZER} (--tokenizer)"
        )


def _length(config: MPTConfig) -> int | None:
    return config.max_seq_len if config.has_position_embedding else None
