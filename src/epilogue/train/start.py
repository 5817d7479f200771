"""The model of a run on its processes, and the weights it begins with: fresh ones, or those of a checkpoint."""

from collections.abc import Iterable

import torch
from torch import Tensor

from epilogue.checkpoint import load_checkpoint, load_tokenizer, resolve
from epilogue.checkpoint.inventory import departures, empty_model
from epilogue.checkpoint.metadata import TOKENIZER
from epilogue.errors import RecipeError
from epilogue.model import MPT, MPTConfig
from epilogue.text import Tokenizer
from epilogue.train.context import split_context
from epilogue.train.mesh import Mesh
from epilogue.train.recipe import Recipe
from epilogue.train.sharding import place, shard_weights


def make_model(
    recipe: Recipe, config: MPTConfig, tokenizer: Tokenizer, mesh: Mesh, *, device: str, is_fresh: bool
) -> MPT:
    """The recipe's model in fp32, laid out over the processes.

    Args:
        recipe: seed of the model, and by choice the checkpoint it begins with.
        config: its architecture.
        tokenizer: what the shards were made with.
        mesh: the processes.
        device: where this process computes.
        is_fresh: False if a step of the run will be loaded over the weights; they are arbitrary then.

    Raises:
        RecipeError: ``model.initialize_from`` has other shapes or another tokenizer.
        CheckpointError: it cannot be read.

    Memory: on the device this process's part and one weight; on the host the checkpoint to begin with.
    """
    model = empty_model(config)
    split_context(model, mesh, num_tokens=recipe.context_tokens)
    shard_weights(model, mesh)
    model.to_empty(device=device)
    if is_fresh:
        parameters = dict(model.named_parameters())
        for name, weight in _first_weights(recipe, config, tokenizer):
            place(parameters[name], weight)
    return model


def _first_weights(recipe: Recipe, config: MPTConfig, tokenizer: Tokenizer) -> Iterable[tuple[str, Tensor]]:
    source = recipe.model.initialize_from
    if source is None:
        return empty_model(config).fresh_weights(seed=recipe.seed)
    directory = resolve(source)
    start = load_checkpoint(directory, dtype=torch.float32, max_seq_len=_length(config))
    if found := departures(start.model.state_dict(), config):
        raise RecipeError(
            f"model.initialize_from {source} does not fit the recipe's model ({found}); "
            "set model.size and model.set to what it is"
        )
    if (directory / TOKENIZER).is_file() and (
        load_tokenizer(directory, start.config).fingerprint != tokenizer.fingerprint
    ):
        raise RecipeError(
            f"model.initialize_from {source} has another tokenizer than the shards; prepare them with its "
            f"{TOKENIZER} (--tokenizer)"
        )
    return start.model.state_dict().items()


def _length(config: MPTConfig) -> int | None:
    return config.max_seq_len if config.has_position_embedding else None
