"""Sources: directories, and the hub with all the ways in which it can refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from checkpoint.material import assert_same_bits, tiny_config, tiny_state, write_layout
from epilogue.checkpoint import load_checkpoint, load_config, resolve
from epilogue.errors import CheckpointError

ID = "mosaicml/mpt-7b-storywriter"
COMPANIONS = ["config.json", "tokenizer.json"]
NOISE = [".gitattributes", "README.md", "modeling_mpt.py", "onnx/config.json", "onnx/model.safetensors"]
SAFETENSORS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
BIN_INDEX = "pytorch_model.bin.index.json"


def http_error(kind: type[Exception]) -> Exception:
    """One of the hub's errors, without the reply that it was made for."""
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error.\nA second line.")
    return error


GATED = http_error(GatedRepoError)
UNKNOWN = http_error(RepositoryNotFoundError)
OFFLINE = OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.\nA second line.")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """A hub that lists files or raises, and a record of what was fetched."""

    def behave(
        listing: list[str] | Exception, *, download: Exception | None = None, cached: object = None
    ) -> list[Any]:
        fetched: list[Any] = []

        def list_repo_files(repo_id: str) -> list[str]:
            if isinstance(listing, Exception):
                raise listing
            return listing

        def fetch(repo_id: str, filename: str | None = None, *, allow_patterns: object = None) -> str:
            if download:
                raise download
            fetched.append(filename or allow_patterns)
            return str(tmp_path / (filename or ""))

        monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: cached)
        return fetched

    return behave


def sentence(source: str | Path, function: Callable[..., object] = resolve) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}") == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "name",
        "a/b/c",
        "./a/b",
        "/no/such",
        "../up",
        "a/../b",
        "a b/c",
        "a\\b",
        "~/x y",
        "~no_such_user/x",
        "a\0b/c",
    ],
)
def test_neither_a_directory_nor_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{source!r} is neither an existing directory nor owner/name" in sentence(source)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert f"{file} is a file; give the directory that holds it" in sentence(file)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([*SAFETENSORS, SAFETENSORS_INDEX, *BIN, BIN_INDEX], SAFETENSORS),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        ([*BIN, BIN_INDEX, "training_args.bin"], BIN),
        (["pytorch_model.bin", "adapter.safetensors"], ["pytorch_model.bin"]),
    ],
)
def test_one_set_of_weights_and_no_code(
    hub: Callable[..., list[Any]], tmp_path: Path, weights: list[str], wanted: list[str]
) -> None:
    fetched = hub([*NOISE, *COMPANIONS, *weights])
    assert resolve(ID) == tmp_path
    assert len(fetched) == 1
    assert {name for name in fetched[0] if not name.endswith(".json")} == set(wanted)
    assert set(COMPANIONS) <= set(fetched[0])
    assert not any("/" in name or name.endswith(".py") for name in fetched[0])


def test_no_weights_on_the_hub(hub: Callable[..., list[Any]]) -> None:
    fetched = hub([*COMPANIONS, *NOISE, "model.gguf"])
    assert f"{ID} has neither model.safetensors nor pytorch_model.bin" in sentence(ID)
    assert fetched == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GATED, f"{ID} is gated: ask for access on its page on the hub, then log in with `hf auth login`"),
        (UNKNOWN, f"there is no directory {ID}, and the hub shows no model of that name; check the spelling"),
        (HFValidationError("bad id"), "the hub shows no model of that name"),
        (OFFLINE, "cannot be fetched from the hub (Cannot reach the hub: offline mode is enabled); connect to"),
        (LocalEntryNotFoundError("not cached"), "(not cached); connect to the network, or fetch it on another machine"),
        (RuntimeError(), "(RuntimeError); connect to the network"),
        (PermissionError(13, "Permission denied", "/cache"), "cannot be stored in the hub's cache"),
        (
            OSError(28, "No space left on device"),
            "([Errno 28] No space left on device); set HF_HOME to",
        ),
        (OSError(30, "Read-only file system"), "set HF_HOME to a directory that can be written and has room"),
    ],
)
def test_every_refusal_says_what_to_do(hub: Callable[..., list[Any]], error: Exception, words: str) -> None:
    hub(error, download=error)
    assert words in sentence(ID)
    assert words in sentence(ID, load_config)
    hub([*COMPANIONS, "model.safetensors"], download=error)
    assert words in sentence(ID)


@pytest.mark.parametrize("error", [OFFLINE, RuntimeError("name resolution failed")])
def test_without_a_network_the_cache_is_used(hub: Callable[..., list[Any]], tmp_path: Path, error: Exception) -> None:
    state = tiny_state(tiny_config(), torch.bfloat16)
    snapshot = write_layout(tmp_path / "snapshot", tiny_config(), state, layout="bin shards")
    fetched = hub(error, cached=str(snapshot / "config.json"))
    assert resolve(ID) == snapshot
    assert_same_bits(load_checkpoint(ID).model.state_dict(), state)
    assert fetched == []


def test_a_cached_config_alone_is_no_checkpoint(hub: Callable[..., list[Any]], tmp_path: Path) -> None:
    hub(OFFLINE, cached=str(tmp_path / "config.json"))
    assert "cannot be fetched from the hub" in sentence(ID)


def test_a_model_that_is_gone_is_not_taken_from_the_cache(hub: Callable[..., list[Any]], tmp_path: Path) -> None:
    write_layout(tmp_path, tiny_config(), tiny_state(tiny_config()), layout="safetensors")
    hub(UNKNOWN, cached=str(tmp_path / "config.json"))
    assert "check the spelling" in sentence(ID)


def test_the_config_alone_is_fetched_alone(hub: Callable[..., list[Any]], tmp_path: Path) -> None:
    write_layout(tmp_path, tiny_config(), tiny_state(tiny_config()), layout="safetensors")
    fetched = hub([*COMPANIONS, "model.safetensors"])
    assert load_config(ID).d_model == tiny_config().d_model
    assert fetched == ["config.json"]


def test_the_real_client_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing patched but the place of the cache: HF_HUB_OFFLINE is set for all tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "cannot be fetched from the hub" in sentence("nobody/nothing")
    assert "cannot be fetched from the hub" in sentence("nobody/nothing", load_config)
