"""The model of a run that trains adapters: frozen weights, dense or quantised, with new detours beside them."""

from dataclasses import replace
from pathlib import Path

import torch

from epilogue.checkpoint import load_adapter, load_checkpoint, resolve
from epilogue.checkpoint.inventory import departures, empty_model
from epilogue.errors import RecipeError
from epilogue.model import MPT, MPTConfig, QuantLinear, add_adapters
from epilogue.train.recipe import Recipe


def make_adapted_model(recipe: Recipe, config: MPTConfig, *, dtype: torch.dtype, newest: Path | None) -> MPT:
    """``model.initialize_from`` with the recipe's switches and adapters, first ones or a step's; only those learn.

    Raises:
        RecipeError: no start is named, or it has other shapes than the recipe's model.
        CheckpointError: it cannot be read, or the step is of other adapters.
    """
    lora, source = recipe.lora, recipe.model.initialize_from
    assert lora is not None
    if source is None:
        raise RecipeError("lora trains beside weights that are there; name them by model.initialize_from")
    start = load_checkpoint(resolve(source), dtype=dtype).model
    config = _as_quantised(config, start.config)
    state = start.state_dict()
    if start.config.quantization is None and (found := departures(state, config)):
        raise RecipeError(
            f"model.initialize_from {source} does not fit the recipe's model ({found}); set model.size to null"
        )
    model = empty_model(config)
    for name, layer in start.named_modules():
        if isinstance(layer, QuantLinear):
            same = model.get_submodule(name)
            assert isinstance(same, QuantLinear)
            same.quant_weight = layer.quant_weight
    model.load_state_dict(state, assign=True)
    model = model.to(start.device, dtype)  # makes the slopes anew, on a device
    add_adapters(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, dropout=lora.dropout, seed=recipe.seed)
    if newest is not None:
        load_adapter(newest, model)
    return model


def _as_quantised(config: MPTConfig, start: MPTConfig) -> MPTConfig:
    """The recipe's config with the codes of the start, whose files know more of them than its config may say."""
    if (config.quantization is None) != (start.quantization is None):
        raise RecipeError("model.initialize_from is quantised and the recipe's model.size is not; set size to null")
    return replace(config, quantization=start.quantization)
