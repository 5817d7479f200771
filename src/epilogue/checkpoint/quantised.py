"""The quantised layers of a checkpoint on their way into a model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from epilogue.checkpoint.files import CONFIG, read_tensors
from epilogue.checkpoint.gptq import LEAVES, StoredLayer, agreed
from epilogue.checkpoint.huggingface import own_name
from epilogue.errors import CheckpointError
from epilogue.model import MPT, QUANTISED_LAYERS, MPTConfig, QuantLinear


def layer_shapes(config: MPTConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every layer that is quantised in a quantised model, by its own name."""
    c, f = config.d_model, config.ffn_width
    shapes = ((c, config.qkv_width), (c, c), (c, f), (f, c))
    return {
        f"transformer.blocks.{block}.{layer}": shape
        for block in range(config.n_layers)
        for layer, shape in zip(QUANTISED_LAYERS, shapes, strict=True)
    }


def quantised_as_stored(config: MPTConfig, directory: Path) -> MPTConfig:
    """The config with everything about quantisation that the tensors' names and shapes decide.

    The files of a model whose config says nothing about it are not opened.

    Raises:
        CheckpointError: tensors that contradict the config or one another.
    """
    if config.quantization is None:
        return config
    layers = QuantisedLayers(config, directory)
    for name, tensor in read_tensors(directory):
        own = own_name(name, is_tied=config.tie_word_embeddings)
        if own is not None:
            layers.takes(own, tensor)
        del tensor
    stored = list(layers.stored())
    if not stored:
        raise CheckpointError(
            f"the {CONFIG} of {directory} says weights of {config.quantization.bits} bits, and no tensor there has "
            f"codes (qweight); remove what it says about quantisation, or fetch the quantised file"
        )
    return replace(config, quantization=agreed(stored, config.quantization, f"the {CONFIG} of {directory}"))


class QuantisedLayers:
    """Collects the tensors of quantised layers as they come, and puts the layers into a model."""

    def __init__(self, config: MPTConfig, directory: Path) -> None:
        self._config, self._directory = config, directory
        self._shapes = layer_shapes(config)
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def without(self, wanted: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
        """The weights that are stored as such: all of them in a dense model."""
        packed = set() if self._config.quantization is None else {f"{layer}.weight" for layer in self._shapes}
        return {name: shape for name, shape in wanted.items() if name not in packed}

    def takes(self, name: str, tensor: Tensor) -> bool:
        """Whether a tensor is part of a quantised layer; it is kept then.

        Some writers give every quantised layer a bias of zeros; where the model has none, that is taken and dropped.

        Raises:
            CheckpointError: it is, and the config says nothing about quantisation.
        """
        layer, _, leaf = name.rpartition(".")
        if layer not in self._shapes:
            return False
        if leaf in LEAVES and self._config.quantization is None:
            raise CheckpointError(
                f"{name} of {self._directory} is part of a quantised layer, and the {CONFIG} there says nothing about "
                f"it; add the quantization_config or the gptq_bits that the model was published with"
            )
        if leaf in LEAVES:
            self._tensors.setdefault(layer, {})[leaf] = tensor
            return True
        has_bias = self._config.has_qkv_bias if layer.endswith("Wqkv") else not self._config.no_bias
        is_spare = leaf == "bias" and self._config.quantization is not None and not has_bias
        return is_spare and tensor.is_floating_point() and not bool(tensor.count_nonzero())

    def stored(self) -> Iterator[StoredLayer]:
        """What has come so far."""
        for name, tensors in self._tensors.items():
            inputs, outputs = self._shapes[name]
            yield StoredLayer(f"{name} of {self._directory}", tensors, inputs, outputs)

    def missing(self) -> list[str]:
        """Layers of a quantised model of which nothing has come."""
        if self._config.quantization is None:
            return []
        return [f"{layer}.qweight" for layer in self._shapes if layer not in self._tensors]

    def place(self, model: MPT, *, device: torch.device | str) -> None:
        """Fill the model's quantised layers, one after another.

        Raises:
            CheckpointError: a layer's tensors are not what the config and the other layers say.
        """
        quantization = self._config.quantization
        for name, layer in zip(list(self._tensors), list(self.stored()), strict=True):
            module = model.get_submodule(name)
            assert quantization is not None
            assert isinstance(module, QuantLinear)
            module.quant_weight = layer.read(quantization, device=device)
            del self._tensors[name]
