"""What lies beside the weights: the config, and the tokenizer or its name."""

import re
from dataclasses import replace
from pathlib import Path

from epilogue.checkpoint.files import (
    CONFIG,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TORCH,
    TORCH_INDEX,
    quantised_file,
    read_json,
)
from epilogue.checkpoint.gguf import is_gguf, read_gguf_config, read_gguf_tokenizer
from epilogue.checkpoint.hub import resolve_file
from epilogue.errors import CheckpointError
from epilogue.model import KOBOLD_KEYS, MPTConfig, Quantization, config_from_dict
from epilogue.text import Tokenizer

TOKENIZER = "tokenizer.json"
_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json")


def load_config(source: str | Path) -> MPTConfig:
    """The architecture of a checkpoint, from its config.json; no weights are fetched or read.

    How it is quantised may stand in a file beside it, or only in the name of its weights, as in ``4bit-128g.pt``.

    Args:
        source: a directory, a .gguf, or ``owner/name`` on the hub.

    Raises:
        CheckpointError: no such source, no config.json, or one that asks for what is not run here.
    """
    if is_gguf(Path(source).expanduser()):
        return read_gguf_config(Path(source).expanduser())
    path = resolve_file(source, CONFIG)
    raw = read_json(path)
    if not any(raw.get(key) for key in ("quantization_config", *KOBOLD_KEYS)):
        for name in _QUANTIZATION_FILES:
            if (path.parent / name).is_file():
                return config_from_dict(
                    raw | {"quantization_config": read_json(path.parent / name)}, where=f"{path} with {name}"
                )
    config = config_from_dict(raw, where=str(path))
    return config if config.quantization else replace(config, quantization=_named_quantization(path.parent))


def _named_quantization(directory: Path) -> Quantization | None:
    """What the name of the only weights says: KoboldAI's fork kept nothing else of its first files."""
    has_others = any((directory / name).is_file() for name in (SAFETENSORS, SAFETENSORS_INDEX, TORCH, TORCH_INDEX))
    file = None if has_others else quantised_file(directory)
    if file is None:
        return None
    name = re.search(r"(\d)bit(?:-(\d{1,9})g)?", file.name)
    bits, group_size = (int(name[1]), name[2]) if name else (4, None)
    if bits not in (4, 8):
        raise CheckpointError(
            f"{file} has weights of {bits} bits by its name, which are not run here; only 4 and 8 are"
        )
    return Quantization(bits=bits, group_size=int(group_size) if group_size else None)


def load_tokenizer(directory: str | Path, config: MPTConfig) -> Tokenizer:
    """The tokenizer of a checkpoint: its tokenizer.json (in a .gguf, its own), else the one its config names.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has ids past the model's vocabulary.
    """
    path = Path(directory)
    if is_gguf(path):
        return _fitting(read_gguf_tokenizer(path), path, config)
    path = path / TOKENIZER
    if not path.is_file():
        name = config.extra.get("tokenizer_name")
        if not isinstance(name, str) or not name:
            raise CheckpointError(
                f"{directory} has no {TOKENIZER} and its {CONFIG} no tokenizer_name; put the {TOKENIZER} that the "
                f"model was trained with into the directory"
            )
        path = _named_tokenizer(name, Path(directory))
    return _fitting(Tokenizer.from_file(path), path, config)


def _fitting(tokenizer: Tokenizer, path: Path, config: MPTConfig) -> Tokenizer:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} ids and the model's vocab_size is {config.vocab_size}; put the "
            f"{TOKENIZER} that the model was trained with beside its weights"
        )
    return tokenizer


def _named_tokenizer(name: str, directory: Path) -> Path:
    try:
        return resolve_file(name, TOKENIZER)
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} has no {TOKENIZER} and the one that its {CONFIG} names is out of reach ({error}); put it "
            f"into the directory as {TOKENIZER}"
        ) from error
