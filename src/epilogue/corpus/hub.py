"""Datasets of the Hugging Face hub, as the files they consist of: ``hf:owner/name`` or ``hf:owner/name@revision``."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from epilogue.errors import BookError

HUB = "hf:"


def list_dataset(source: str, endings: tuple[str, ...]) -> list[tuple[str, int]]:
    """The data files of a dataset as ``hf:owner/name@revision/file``, sorted, with their sizes in bytes.

    The revision is the commit, so that a run that is resumed reads what it began with.

    Raises:
        BookError: there is no such dataset, it holds no such file, or the hub cannot be reached.
    """
    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision or None, files_metadata=True)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise BookError(f"the dataset {name} cannot be listed ({_first_line(error)}); check its name") from error
    files = [(file.rfilename, file.size or 0) for file in info.siblings or ()]
    found = sorted((path, size) for path, size in files if path.lower().endswith(endings))
    if not found:
        raise BookError(f"the dataset {name} has no {', '.join(endings)} file; choose another")
    return [(f"{HUB}{name}@{info.sha}/{path}", size) for path, size in found]


def local_file(path: str) -> Path:
    """A file on this machine: the path itself, or where a file of the hub lies once it has been fetched.

    Raises:
        BookError: it cannot be fetched.
    """
    if not path.startswith(HUB):
        return Path(path)
    owner, rest = path.removeprefix(HUB).split("/", 1)
    name, _, rest = rest.partition("@")
    revision, _, file = rest.partition("/")
    try:
        return Path(huggingface_hub.hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, OSError) as error:
        raise BookError(f"{file} of the dataset {owner}/{name} cannot be fetched ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
