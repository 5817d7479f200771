"""What several verbs choose the same way: the model, its device and its dtype."""

from importlib.resources import files
from pathlib import Path

import torch

from epilogue.checkpoint import Checkpoint, load_checkpoint
from epilogue.errors import RequestError

BUNDLED_MODEL = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"
BUNDLED_BOOK = Path(str(files("epilogue"))) / "bundled" / "a-life-in-being.txt"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> str:
    """auto to the best device there is; anything else is checked.

    Raises:
        RequestError: an unknown or absent device.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if present[device])
    if not present.get(name.split(":")[0], False):
        here = ", ".join(device for device, is_here in present.items() if is_here)
        raise RequestError(f"device {name!r} is not on this machine, which has {here}; choose one of these or auto")
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


def open_model(source: str | None, *, device: str, dtype: str, max_seq_len: int | None = None) -> Checkpoint:
    """Load the model asked for, or the bundled one."""
    chosen = choose_device(device)
    return load_checkpoint(
        source or BUNDLED_MODEL, device=chosen, dtype=choose_dtype(dtype, chosen), max_seq_len=max_seq_len
    )
