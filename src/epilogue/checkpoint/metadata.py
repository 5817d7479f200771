"""What lies beside the weights: the config, and the tokenizer or its name."""

from pathlib import Path

from epilogue.checkpoint.files import CONFIG, read_json
from epilogue.checkpoint.gguf import is_gguf, read_gguf_config, read_gguf_tokenizer
from epilogue.checkpoint.hub import resolve_file
from epilogue.errors import CheckpointError
from epilogue.model import MPTConfig, config_from_dict
from epilogue.text import Tokenizer

TOKENIZER = "tokenizer.json"


def load_config(source: str | Path) -> MPTConfig:
    """The architecture of a checkpoint, from its config.json alone; no weights are fetched or read.

    Args:
        source: a directory, a .gguf, or ``owner/name`` on the hub.

    Raises:
        CheckpointError: no such source, no config.json, or one that asks for what is not run here.
    """
    if is_gguf(Path(source).expanduser()):
        return read_gguf_config(Path(source).expanduser())
    path = resolve_file(source, CONFIG)
    return config_from_dict(read_json(path), where=str(path))


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
