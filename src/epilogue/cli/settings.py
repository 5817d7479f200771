"""What several verbs choose the same way: the model, its device and its dtype."""

from importlib.resources import files
from pathlib import Path
from typing import cast, get_args

import torch

from epilogue.checkpoint import Checkpoint, load_checkpoint, load_config
from epilogue.engine import Engine, Storage, available_bytes
from epilogue.errors import CapacityError, RequestError
from epilogue.model import MPT, NAMED_SIZES, MPTConfig, weight_bytes

_BUNDLED = Path(str(files("epilogue"))) / "bundled"
BUNDLED_MODEL = _BUNDLED / "epilogue-tiny"
BUNDLED_NAME = "bundled"
"""What calls for the bundled model where a model must be named."""
BUNDLED_BOOK = _BUNDLED / "a-life-in-being.txt"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> str:
    """auto to the best device there is; anything else is checked.

    Raises:
        RequestError: an unknown or absent device.
    """
    cuda = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    here = [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        return here[0]
    if name not in here:
        raise RequestError(f"device {name!r} is not on this machine, which has {', '.join(here)}; choose one or auto")
    return name


def choose_dtype(name: str, device: str) -> torch.dtype:
    """auto to bf16 on CUDA and fp32 elsewhere.

    Raises:
        RequestError: an unknown dtype.
    """
    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if name not in _DTYPES:
        raise RequestError(f"dtype must be auto, {', '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]


def choose_storage(name: str, dtype: torch.dtype) -> Storage:
    """How keys and values are kept; auto to what loses nothing of the weights' dtype.

    Raises:
        RequestError: an unknown storage.
    """
    if name == "auto":
        return "bfloat16" if dtype == torch.bfloat16 else "float32"
    if name not in get_args(Storage):
        raise RequestError(f"--kv-storage must be auto, {', '.join(get_args(Storage))}, got {name!r}")
    return cast(Storage, name)


def check_epsilon(epsilon: float) -> float:
    """The same, if it is a share.

    Raises:
        RequestError: it is not.
    """
    if not 0 <= epsilon < 1:
        raise RequestError(f"--epsilon must be in [0, 1), got {epsilon}; 0 looks at everything")
    return epsilon


def parse_lengths(given: str, *, option: str) -> list[int]:
    """Rising numbers of tokens from a list such as 2k,8192.

    Raises:
        RequestError: it is none.
    """
    lengths = set()
    for part in given.split(","):
        number = part.strip().lower()
        digits, factor = (number[:-1], 1024) if number.endswith("k") else (number, 1)
        if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
            raise RequestError(f"{option} takes numbers of tokens such as 2k,8k,83968, got {part!r}")
        lengths.add(int(digits) * factor)
    return sorted(lengths)


def open_model(source: str | None, *, device: str, dtype: str, max_seq_len: int | None = None) -> Checkpoint:
    """Load the model asked for, or the bundled one.

    Raises:
        RequestError: an unknown device or dtype, or the name of an architecture, which has no weights.
        CapacityError: the weights do not fit in memory; said before they are fetched or read.
        CheckpointError: the checkpoint cannot be read.
    """
    chosen = choose_device(device)
    weights_dtype = choose_dtype(dtype, chosen)
    place = BUNDLED_MODEL if source is None else source
    if source is not None and named_size(source):
        raise RequestError(
            f"{source} is the name of an architecture, without weights; give a checkpoint's folder or its owner/name"
            " on the hub, or see what it would cost with `epilogue info`"
        )
    _check_memory(load_config(place), str(place), chosen, weights_dtype)
    return load_checkpoint(place, device=chosen, dtype=weights_dtype, max_seq_len=max_seq_len)


def open_engine(checkpoint: Checkpoint, *, storage: str, epsilon: float) -> Engine:
    """An engine on a loaded model.

    Raises:
        RequestError: an unknown storage, or an epsilon that is no share.
    """
    return Engine.on(checkpoint, storage=choose_storage(storage, checkpoint.dtype), epsilon=check_epsilon(epsilon))


def random_model(name: str, config: MPTConfig, *, device: str, dtype: str) -> MPT:
    """A model of a named size with fresh weights, as training begins with, drawn from a fixed seed.

    Raises:
        RequestError: an unknown device or dtype.
        CapacityError: the weights do not fit in memory; said before any is taken.
    """
    chosen = choose_device(device)
    weights_dtype = choose_dtype(dtype, chosen)
    _check_memory(config, name, chosen, weights_dtype)
    with torch.device("meta"):
        model = MPT(config)
    model = model.to(weights_dtype).to_empty(device=chosen)
    model.init_weights()
    return model.eval()


def named_size(source: str) -> MPTConfig | None:
    """The architecture of a name such as mpt-7b; None if there is no such name, or a folder that bears it."""
    return None if Path(source).exists() else NAMED_SIZES.get(source)


def name_of(source: str | None) -> str:
    """What to call a model in a line of talk."""
    return f"{BUNDLED_MODEL.name}, the bundled model" if source is None else source


def in_words(num_bytes: float) -> str:
    """A size as a person reads it."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:,.2f} GiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def _check_memory(config: MPTConfig, name: str, device: str, dtype: torch.dtype) -> None:
    needed, available = weight_bytes(config, dtype), available_bytes(torch.device(device))
    if needed > available:
        advice = "--dtype bfloat16 halves that" if dtype.itemsize > 2 else "a smaller model or more memory is needed"
        raise CapacityError(
            f"the weights of {name} take {in_words(needed)} in {str(dtype).removeprefix('torch.')} and"
            f" {in_words(available)} of memory are available on {device}; {advice}"
        )
