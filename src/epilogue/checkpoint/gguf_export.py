"""A checkpoint written as one .gguf, tensor by tensor, and read back before it counts as written."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from epilogue.checkpoint.dtypes import check_storage
from epilogue.checkpoint.files import read_tensors, reason
from epilogue.checkpoint.gguf.architecture import ARCHITECTURE, check_carried, config_to_metadata, gguf_name
from epilogue.checkpoint.gguf.file import GGUFFile, TensorPlace
from epilogue.checkpoint.gguf.types import TYPE_NAMED, TensorType, encode, gguf_package
from epilogue.checkpoint.gguf.vocabulary import tokenizer_to_metadata
from epilogue.checkpoint.hub import resolve
from epilogue.checkpoint.huggingface import own_name
from epilogue.checkpoint.inventory import Departures, wanted_shapes
from epilogue.checkpoint.metadata import load_config, load_tokenizer
from epilogue.errors import CheckpointError
from epilogue.model import MPTConfig

WEIGHT_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""What matrices are written as. Vectors are always float32: llama.cpp multiplies by them as such."""

_FILE_TYPE = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}
_QUANTIZATION_VERSION = 2


def export_gguf(
    source: str | Path,
    out: str | Path,
    *,
    weight_type: str = "f16",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a checkpoint as the one file that llama.cpp and KoboldCpp read.

    The file appears under its name when it is whole, on the disk, and every byte was read back and found the same.

    Args:
        source: a directory, ``owner/name`` on the hub, or another .gguf.
        out: the file to write; replaced if it is there.
        weight_type: one of ``WEIGHT_TYPES``, for all matrices.
        on_progress: is called with tensors written and their number.

    Raises:
        CheckpointError: a switch, a tokenizer or a shape that GGUF does not carry; a source that cannot be read;
            weights too large for the type; ggml's package missing; a place that cannot be written.
        ValueError: another weight type.

    Memory: one tensor. Disk: the new file, beside an old one of that name.
    """
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"weight_type must be one of {', '.join(WEIGHT_TYPES)}, got {weight_type!r}")
    directory, target = resolve(source), Path(out)
    config = load_config(directory)
    check_carried(config)
    # The source's own last name: what a hub id resolves to is called by a hash.
    name = str(config.extra.get("name") or Path(source).resolve().name.removesuffix(".gguf"))
    metadata = {"general.name": name} | _metadata(directory, config, weight_type)
    types = _types(config, TYPE_NAMED[weight_type.upper()])
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with unfinished.open("wb") as stream:
            places = _write_header(stream, unfinished, metadata, types)
            digests = _Filling(stream, places, config, directory).fill(on_progress)
            stream.flush()
            os.fsync(stream.fileno())
        _check_written(unfinished, places, digests)
        unfinished.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({reason(error)}); make room or choose another place"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _metadata(directory: Path, config: MPTConfig, weight_type: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"general.file_type": _FILE_TYPE[weight_type]}
    if weight_type.startswith("q"):
        metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    tokenizer = load_tokenizer(directory, config)
    return metadata | config_to_metadata(config) | tokenizer_to_metadata(tokenizer, config.vocab_size)


def _types(config: MPTConfig, matrices: TensorType) -> dict[str, tuple[tuple[int, ...], TensorType]]:
    """Shape and type of every tensor, by our name, in the model's order."""
    types: dict[str, tuple[tuple[int, ...], TensorType]] = {}
    for name, shape in wanted_shapes(config).items():
        type_ = matrices if len(shape) > 1 else TYPE_NAMED["F32"]
        if shape[-1] % type_.block_weights:
            raise CheckpointError(
                f"{name} has rows of {shape[-1]} weights and {type_.name} packs {type_.block_weights} at a time; "
                f"export with --type f16"
            )
        types[name] = (tuple(shape), type_)
    return types


def _write_header(
    stream: IO[bytes],
    path: Path,
    metadata: Mapping[str, Any],
    types: Mapping[str, tuple[tuple[int, ...], TensorType]],
) -> dict[str, TensorPlace]:
    """Everything before the weights, by ggml's own writer; where each tensor goes, by our name."""
    gguf = gguf_package()
    writer = gguf.GGUFWriter(None, ARCHITECTURE)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, (shape, type_) in types.items():
        kind = gguf.GGMLQuantizationType(type_.number)
        writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), type_.num_bytes(shape), raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    position = path.stat().st_size
    places: dict[str, TensorPlace] = {}
    for name, (shape, type_) in types.items():
        places[name] = TensorPlace(shape, type_, start=writer.ggml_pad(position, writer.data_alignment))
        position = places[name].start + places[name].num_bytes
    # The last tensor is padded as well.
    stream.truncate(writer.ggml_pad(position, writer.data_alignment))
    return places


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


class _Filling:
    """Puts tensors into their places in the order in which the source has them."""

    def __init__(
        self, stream: IO[bytes], places: Mapping[str, TensorPlace], config: MPTConfig, directory: Path
    ) -> None:
        self._stream = stream
        self._places = places
        self._is_tied = config.tie_word_embeddings
        self._directory = directory
        self._departures = Departures()
        self._digests: dict[str, bytes] = {}

    def fill(self, on_progress: Callable[[int, int], None]) -> dict[str, bytes]:
        """A digest of every tensor's bytes, by our name."""
        for foreign, tensor in read_tensors(self._directory):
            name = own_name(foreign, is_tied=self._is_tied)
            if name is not None:
                self._place(name, foreign, tensor)
            on_progress(len(self._digests), len(self._places))
        self._departures.missing = [name for name in self._places if name not in self._digests]
        if self._departures:
            raise CheckpointError(
                f"the weights in {self._directory} do not fit its config ({self._departures}); "
                f"get both from the same source"
            )
        return self._digests

    def _place(self, name: str, foreign: str, tensor: Tensor) -> None:
        check_storage(f"{foreign} of {self._directory}", tensor)
        place = self._places.get(name)
        if place is None:
            self._departures.unknown.append(foreign)
        elif tensor.shape != place.shape:
            self._departures.add_misshapen(foreign, tensor.shape, torch.Size(place.shape))
        else:
            self._write(name, tensor, place)

    def _write(self, name: str, tensor: Tensor, place: TensorPlace) -> None:
        digest = hashlib.sha256()
        # A tied head may come under both names; the same bytes are then written twice.
        is_new = name not in self._digests
        self._stream.seek(place.start)
        for content in encode(f"{name} of {self._directory}", tensor, place.type):
            digest.update(content.data)
            if is_new:
                self._stream.write(content.data)
        if is_new:
            self._digests[name] = digest.digest()
        elif self._digests[name] != digest.digest():
            self._departures.repeated.append(name)


def _check_written(path: Path, places: Mapping[str, TensorPlace], digests: Mapping[str, bytes]) -> None:
    """Read the file as anybody would, and compare."""
    file = GGUFFile(path)
    wanted = {gguf_name(name): place for name, place in places.items()}
    is_same = file.tensors == wanted and all(
        hashlib.sha256(file.raw(gguf_name(name)).data).digest() == digest for name, digest in digests.items()
    )
    if not is_same:
        raise CheckpointError(
            f"what was written to {path} reads back differently; the disk may be failing, try another"
        )
