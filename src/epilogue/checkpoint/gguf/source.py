"""A .gguf read as a checkpoint: its config, its tensors under our names, its tokenizer."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from epilogue.checkpoint.gguf.architecture import config_from_metadata, name_from_gguf
from epilogue.checkpoint.gguf.file import GGUFFile
from epilogue.checkpoint.gguf.types import decode
from epilogue.checkpoint.gguf.vocabulary import tokenizer_from_metadata
from epilogue.model import MPTConfig
from epilogue.text import Tokenizer


def is_gguf(path: Path) -> bool:
    """Whether a path is a file of this format, by its name; the content is checked when it is read."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def read_gguf_config(path: Path) -> MPTConfig:
    """The architecture; no weights are read.

    Raises:
        CheckpointError: not a sound GGUF file, or not of an MPT.
    """
    return config_from_metadata(GGUFFile(path))


def read_gguf_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Our names and the tensors, on the CPU: plain ones are views of the file, packed ones come as float32.

    Raises:
        CheckpointError: not a sound GGUF file, or packed weights without ggml's package.

    Memory: one unpacked tensor.
    """
    file = GGUFFile(path)
    for name, place in file.tensors.items():
        yield name_from_gguf(name), decode(file.raw(name), place.type, place.shape)


def read_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer.

    Raises:
        CheckpointError: not a sound GGUF file, or one without a byte-level BPE vocabulary.
    """
    file = GGUFFile(path)
    return tokenizer_from_metadata(file.metadata, where=str(path))
