"""Where a checkpoint lies: a directory, or a model of the Hugging Face hub brought into its cache.

Only JSON and weights are fetched, never a repository's Python files.
"""

import errno
import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from epilogue.checkpoint.files import CONFIG, SAFETENSORS, SAFETENSORS_INDEX, TORCH, TORCH_INDEX, reason
from epilogue.checkpoint.gguf import is_gguf
from epilogue.errors import CheckpointError

_HUB_ID = re.compile(r"[a-z0-9][\w.-]*/[a-z0-9_][\w.-]*", flags=re.ASCII | re.IGNORECASE)
_DISK_TROUBLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_WEIGHTS = (SAFETENSORS, SAFETENSORS_INDEX, TORCH, TORCH_INDEX)
_LEGACY = (".safetensors", ".pt")
_LOGIN = "log in with `hf auth login`"


def resolve(source: str | Path) -> Path:
    """The directory of a checkpoint: the source itself if it is one or a .gguf, else that of the hub's ``owner/name``.

    What is fetched goes to the hub's own cache, with its progress bars; safetensors if there are any, else
    ``pytorch_model*.bin``. Without a network, what the cache holds is used.

    Raises:
        CheckpointError: neither a directory nor ``owner/name``; unknown, gated or private on the hub; not reachable
            and not in the cache; no weights; a cache that cannot be written.
    """
    directory = _local(source)
    if directory is not None:
        return directory
    hub_id = str(source)
    try:
        names = huggingface_hub.list_repo_files(hub_id)
    except Exception as error:  # HTTP clients have exception trees of their own
        return _cached(hub_id, error)
    wanted = _wanted_files(hub_id, names)
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:
        raise _explained(hub_id, error) from error


def resolve_file(source: str | Path, name: str) -> Path:
    """The path of one file of a checkpoint, without the rest: in the directory, or fetched from the hub.

    A directory may lack it: reading it then says so.

    Raises:
        CheckpointError: as ``resolve``.
    """
    directory = _local(source)
    if directory is not None:
        return directory / name
    try:
        return Path(huggingface_hub.hf_hub_download(str(source), name))
    except Exception as error:
        raise _explained(str(source), error) from error


def _local(source: str | Path) -> Path | None:
    """The source if it is a directory, None if it can be the hub's."""
    path = Path(os.path.expanduser(source))  # Path.expanduser raises on unknown users
    if path.is_dir() and str(source):
        return path
    if is_gguf(path):
        return path
    if path.is_file():
        raise CheckpointError(f"{source} is a file; give the directory that holds it and {CONFIG}")
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{str(source)!r} is neither an existing directory nor owner/name on the hub; check the spelling"
        )
    return None


def _wanted_files(hub_id: str, names: list[str]) -> list[str]:
    """JSON and one set of weights; patterns would also take those of subfolders."""
    top = [name for name in names if "/" not in name]
    if {SAFETENSORS, SAFETENSORS_INDEX} & set(top):
        weights = [name for name in top if name.endswith(".safetensors")]
    elif {TORCH, TORCH_INDEX} & set(top):
        weights = [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]
    elif quantised := [name for name in top if name.startswith(("4bit", "gptq_model-")) and name.endswith(_LEGACY)]:
        weights = quantised
    else:
        raise CheckpointError(
            f"{hub_id} has neither {SAFETENSORS} nor {TORCH}, whole or in shards; choose another model on the hub"
        )
    return [name for name in top if name.endswith(".json")] + weights


def _cached(hub_id: str, error: Exception) -> Path:
    """The snapshot that an earlier download left, if the hub did not answer."""
    if not isinstance(error, RepositoryNotFoundError | HFValidationError):
        config = huggingface_hub.try_to_load_from_cache(hub_id, CONFIG)
        directory = Path(config).parent if isinstance(config, str) else None
        # The config alone may be there, fetched for itself.
        if directory and any((directory / name).exists() for name in _WEIGHTS):
            return directory
    raise _explained(hub_id, error) from error


def _explained(hub_id: str, error: Exception) -> CheckpointError:
    if isinstance(error, GatedRepoError):
        what = f"{hub_id} is gated: ask for access on its page on the hub, then {_LOGIN}"
    elif isinstance(error, RepositoryNotFoundError | HFValidationError):
        what = (
            f"there is no directory {hub_id}, and the hub shows no model of that name; check the spelling, or "
            f"{_LOGIN} if it is private"
        )
    elif isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
        what = (
            f"{hub_id} cannot be stored in the hub's cache ({reason(error)}); set HF_HOME to a directory that can "
            f"be written and has room"
        )
    else:
        what = (
            f"there is no directory {hub_id}, and it cannot be fetched from the hub ({reason(error)}); connect to "
            f"the network, or fetch it on another machine and give its directory"
        )
    return CheckpointError(what)
