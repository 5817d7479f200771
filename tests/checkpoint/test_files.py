"""Files that are missing, damaged or hostile, and how much is in memory at once."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoint.material import LAYOUTS, tiny_config, tiny_state, write_config, write_index, write_layout
from epilogue.checkpoint import files, load_checkpoint, read_tensors
from epilogue.errors import CheckpointError

INDEXES = {
    "safetensors shards": "model.safetensors.index.json",
    "bin shards": "pytorch_model.bin.index.json",
}


def make(directory: Path, layout: str) -> Path:
    return write_layout(directory, tiny_config(), tiny_state(tiny_config()), layout=layout)


def sentence(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def weight_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in {".safetensors", ".bin", ".pt"})


@pytest.mark.parametrize("keep", ["half", "all but 9 bytes", "16 bytes", "nothing", "noise"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_named(tmp_path: Path, layout: str, keep: str) -> None:
    make(tmp_path, layout)
    file = weight_files(tmp_path)[-1]
    content = file.read_bytes()
    kept = {
        "half": content[: len(content) // 2],
        "all but 9 bytes": content[:-9],
        "16 bytes": content[:16],
        "nothing": b"",
        "noise": bytes(range(256)) * 8,
    }
    file.write_bytes(kept[keep])
    message = sentence(tmp_path)
    assert message.startswith(f"{file} is damaged or")
    assert "fetch" in message


@pytest.mark.parametrize("layout", INDEXES)
def test_a_missing_shard_is_named_before_anything_is_read(tmp_path: Path, layout: str) -> None:
    make(tmp_path, layout)
    file = weight_files(tmp_path)[-1]
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"index.json names the shard '{file.name}', which is not there; fetch"):
        next(read_tensors(tmp_path))


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.bin",
        "C:model.bin",
        "..",
        "",
        "config.json",
        "x\0.bin",
    ],
)
@pytest.mark.parametrize("layout", INDEXES)
def test_an_index_stays_in_its_directory(tmp_path: Path, layout: str, shard: str) -> None:
    outside = make(tmp_path, "safetensors")
    inside = make(outside / "sub", layout)
    write_index(inside / INDEXES[layout], {"transformer.wte.weight": shard})
    assert f"names the shard {shard!r}, which is not a .safetensors or .bin file beside it" in sentence(inside)


@given(shard=st.text(st.characters(codec=None), max_size=300).map(lambda text: text + ".bin"))
def test_no_shard_name_gets_past_the_check(tmp_path_factory: pytest.TempPathFactory, shard: str) -> None:
    directory = tmp_path_factory.mktemp("index")
    write_index(directory / "pytorch_model.bin.index.json", {"x": shard})
    with pytest.raises(CheckpointError, match="names the shard"):
        next(read_tensors(directory))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"x": 1}}', "\ud800"]
)
@pytest.mark.parametrize("layout", INDEXES)
def test_a_broken_index_is_named(tmp_path: Path, layout: str, content: str) -> None:
    index = make(tmp_path, layout) / INDEXES[layout]
    index.write_text(content, errors="surrogatepass")
    message = sentence(tmp_path)
    assert message.startswith(str(index))
    assert message.endswith("fetch the file again")


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udfff", "[" * 100_000])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    make(tmp_path, "safetensors")
    (tmp_path / "config.json").write_text(content, errors="surrogatepass")
    assert sentence(tmp_path).startswith(f"{tmp_path / 'config.json'} ")


def test_no_config(tmp_path: Path) -> None:
    make(tmp_path, "safetensors")
    (tmp_path / "config.json").unlink()
    assert f"{tmp_path} has no config.json" in sentence(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    message = sentence(tmp_path)
    assert f"{tmp_path} holds no weights; wanted model.safetensors" in message


def test_an_empty_index_leaves_everything_missing(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    write_index(tmp_path / "model.safetensors.index.json", {})
    assert "missing: transformer.wte.weight" in sentence(tmp_path)


def test_two_composer_checkpoints(tmp_path: Path) -> None:
    make(tmp_path, "flat pt")
    torch.save({}, tmp_path / "ep2.pt")
    assert "several Composer checkpoints (ep1.pt, ep2.pt); leave one" in sentence(tmp_path)


class Code:
    """A pickle that would make a file where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "ep1.pt"])
def test_a_pickle_with_code_is_refused(tmp_path: Path, name: str, *, legacy: bool) -> None:
    write_config(tmp_path, tiny_config())
    state = tiny_state(tiny_config()) | {"code": Code(tmp_path / "ran")}
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    message = sentence(tmp_path)
    assert "holds more than tensors and is not opened, because a pickle can run code" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1], "text", {"state": {"model": 3}}, {"state": {}}])
def test_a_pickle_without_a_state(tmp_path: Path, content: object) -> None:
    write_config(tmp_path, tiny_config())
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert "holds no table of tensors" in sentence(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("epoch", 3), (7, torch.ones(2))])
def test_a_pickle_with_other_values(tmp_path: Path, name: object, value: object) -> None:
    write_config(tmp_path, tiny_config())
    torch.save({name: value}, tmp_path / "pytorch_model.bin")
    assert f"holds a {type(value).__name__} under {name!r} where tensors were wanted" in sentence(tmp_path)


class Watch:
    """How many of the tensors that were read from disk are alive."""

    def __init__(self) -> None:
        self.alive = 0
        self.most = 0
        self.opened = 0

    def follow(self, tensor: torch.Tensor) -> torch.Tensor:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self.release)
        return tensor

    def release(self) -> None:
        self.alive -= 1

    def open(self) -> None:
        """A shard is opened: nothing of the one before may be left."""
        assert self.alive == 0
        self.opened += 1


def many_shards(directory: Path, suffix: str) -> int:
    """One shard a block, and one for the rest; the number of tensors of the largest."""
    config = tiny_config(n_layers=12)
    state = tiny_state(config)
    write_config(directory, config)
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        block = name.split(".")[2] if ".blocks." in name else "rest"
        groups.setdefault(f"part-{block}{suffix}", {})[name] = tensor
    for file, group in groups.items():
        if suffix == ".bin":
            torch.save(group, directory / file)
        else:
            save_file(group, directory / file)
    index = "pytorch_model.bin.index.json" if suffix == ".bin" else "model.safetensors.index.json"
    write_index(directory / index, {name: file for file, group in groups.items() for name in group})
    return max(map(len, groups.values()))


def test_one_pickled_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = many_shards(tmp_path, ".bin")
    watch, real = Watch(), torch.load

    def load(*args: Any, **options: Any) -> Any:
        watch.open()
        return {name: watch.follow(tensor) for name, tensor in real(*args, **options).items()}

    monkeypatch.setattr(files.torch, "load", load)
    load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert watch.opened == 13
    assert watch.most == largest
    assert watch.alive == 0


def test_one_tensor_of_safetensors_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many_shards(tmp_path, ".safetensors")
    watch, real = Watch(), files.safe_open

    class Watched:
        def __init__(self, *args: Any, **options: Any) -> None:
            watch.open()
            self.file = real(*args, **options)

        def __enter__(self) -> "Watched":
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def get_tensor(self, name: str) -> torch.Tensor:
            return watch.follow(self.file.get_tensor(name))

    monkeypatch.setattr(files, "safe_open", Watched)
    load_checkpoint(tmp_path)
    assert watch.opened == 13
    assert watch.most == 1
    assert watch.alive == 0


def test_a_map_of_the_index_is_checked_as_json(tmp_path: Path) -> None:
    make(tmp_path, "safetensors shards")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert dict(read_tensors(tmp_path)).keys() == content["weight_map"].keys()
