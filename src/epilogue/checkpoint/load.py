"""A checkpoint directory or a .gguf to a model that is ready to read."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from epilogue.checkpoint.dtypes import check_dtype, check_storage, convert, prevailing_dtype
from epilogue.checkpoint.files import CONFIG, SAFETENSORS, read_tensors
from epilogue.checkpoint.hub import resolve
from epilogue.checkpoint.huggingface import EMBEDDING, HEAD, POSITIONS, own_name
from epilogue.checkpoint.inventory import Departures, empty_model, wanted_shapes
from epilogue.checkpoint.metadata import load_config
from epilogue.checkpoint.quantised import QuantisedLayers, quantised_as_stored
from epilogue.errors import CheckpointError
from epilogue.model import MPT, MPTConfig

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with what describes it. Independent of the files it came from."""

    model: MPT
    """In eval mode, no weight asks for a gradient."""
    config: MPTConfig
    """The model's own; max_seq_len as asked for."""
    directory: Path
    """Where the files lie, or the .gguf itself; a model of the hub lies in its cache."""
    dtype: torch.dtype
    """What the weights are."""


def load_checkpoint(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    max_seq_len: int | None = None,
) -> Checkpoint:
    """Read a checkpoint and check that it is whole.

    Args:
        source: a directory, a .gguf, or ``owner/name`` on the hub.
        device: where the weights go, tensor by tensor.
        dtype: float32, float16, bfloat16 or float64; None for the one on disk (of most values, if there are several).
        max_seq_len: in place of the config's; learned positions can be shortened only.

    Raises:
        CheckpointError: no such source; files missing or damaged; tensors missing, unknown or misshapen; a config that
            asks for what is not run here, or contradicts the tensors.
        ValueError: another dtype, or a max_seq_len below 1.

    Quantised weights keep their codes and scales, whatever ``dtype`` is: it is that of the rest, and of the products.

    Memory: the weights and one shard, the latter as pages of its file; of a quantised one all shards.
    """
    check_dtype(dtype)
    directory = resolve(source)
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / SAFETENSORS).is_file():
        raise CheckpointError(
            f"{directory} holds low-rank adapters and no model; make one with `epilogue merge {directory} OUT`"
        )
    stored = load_config(directory)
    stored = quantised_as_stored(stored, directory)
    config = _with_length(stored, max_seq_len, directory)
    filling = _Filling(empty_model(config), stored, directory=directory, device=device, dtype=dtype)
    for name, tensor in read_tensors(directory):
        filling.place(name, tensor)
        del tensor  # else it would keep its shard while the next one is opened
    model = filling.finish()
    return Checkpoint(model, config, directory, model.dtype)


def _with_length(config: MPTConfig, max_seq_len: int | None, directory: Path) -> MPTConfig:
    if max_seq_len is None:
        return config
    if config.has_position_embedding and max_seq_len > config.max_seq_len:
        raise CheckpointError(
            f"{directory} has learned positions for {config.max_seq_len} tokens and max_seq_len {max_seq_len} was "
            f"asked for; ask for at most {config.max_seq_len}"
        )
    return replace(config, max_seq_len=max_seq_len)


class _Filling:
    """Puts tensors into a model without memory as they come, and keeps account of what does not fit."""

    def __init__(
        self,
        model: MPT,
        stored: MPTConfig,
        *,
        directory: Path,
        device: torch.device | str,
        dtype: torch.dtype | None,
    ) -> None:
        self._model = model
        self._packed = QuantisedLayers(stored, directory)
        self._wanted = self._packed.without(wanted_shapes(replace(stored, quantization=None)))
        self._is_tied = stored.tie_word_embeddings
        self._directory = directory
        self._device = device
        self._dtype = dtype
        self._departures = Departures()
        self._seen: set[str] = set()

    def place(self, foreign: str, tensor: Tensor) -> None:
        name = own_name(foreign, is_tied=self._is_tied)
        if name is None or self._packed.takes(name, tensor):
            return
        check_storage(f"{foreign} of {self._directory}", tensor)
        if name not in self._wanted:
            self._departures.unknown.append(foreign)
        elif tensor.shape != self._wanted[name]:
            self._departures.add_misshapen(foreign, tensor.shape, self._wanted[name])
        elif name not in self._seen:
            self._assign(name, tensor)
        elif name == EMBEDDING and self._is_tied:
            self._check_tie(tensor)
        else:
            self._departures.repeated.append(foreign)
        self._seen.add(name)

    def finish(self) -> MPT:
        """The model, whole and in one dtype."""
        self._departures.missing = [name for name in self._wanted if name not in self._seen] + self._packed.missing()
        if self._departures:
            raise CheckpointError(
                f"the weights in {self._directory} do not fit its {CONFIG} ({self._departures}); "
                f"get both from the same source"
            )
        self._packed.place(self._model, device=self._device)
        dtype = self._dtype or prevailing_dtype(self._model.parameters())
        # Also makes the buffers anew, which are no part of a checkpoint.
        return self._model.to(device=self._device, dtype=dtype).eval()

    def _assign(self, name: str, tensor: Tensor) -> None:
        if name == POSITIONS:
            tensor = tensor[: self._model.config.max_seq_len]
        weight = self._converted(name, tensor, dtype=self._dtype or tensor.dtype)
        module, _, leaf = name.rpartition(".")
        setattr(self._model.get_submodule(module), leaf, nn.Parameter(weight, requires_grad=False))

    def _converted(self, name: str, tensor: Tensor, *, dtype: torch.dtype) -> Tensor:
        return convert(f"{name} of {self._directory}", tensor, dtype=dtype, device=self._device)

    def _check_tie(self, tensor: Tensor) -> None:
        """Whatever of the two came first is in the model; the other must say the same, bit for bit."""
        held = self._model.transformer.wte.weight
        other = self._converted(HEAD, tensor, dtype=held.dtype)
        if not torch.equal(held.view(torch.uint8), other.view(torch.uint8)):
            raise CheckpointError(
                f"{HEAD} of {self._directory} differs from {EMBEDDING} although {CONFIG} says "
                f"tie_word_embeddings = true; set it to false to keep both, or remove {HEAD}"
            )
