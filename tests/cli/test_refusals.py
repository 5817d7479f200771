"""What is wrong in the world or on the command line: one sentence that names it, exit code 2, nothing left behind."""

import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import psutil
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from cli.material import BOOK, Run
from epilogue.engine import Engine


def epub(path: Path, **members: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_xml", ".xml"), content)


def make_book(path: Path, kind: str) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "binary":
        path.write_bytes(bytes(range(256)) * 8)
    elif kind == "directory":
        path.mkdir()
    elif kind == "protected":
        epub(path, **{"META-INF__container_xml": "<container/>", "META-INF__rights_xml": "<rights/>"})
    elif kind == "broken":
        epub(path, **{"META-INF__container_xml": "<container/>"})
    elif kind == "cut":
        path.write_bytes(b"PK\x03\x04 and no more")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("a.txt", "missing", "there is no file"),
        ("a.txt", "empty", "is empty"),
        ("a.txt", "binary", "is not text"),
        ("folder", "directory", "is a directory"),
        ("a.epub", "protected", "protected (DRM)"),
        ("a.epub", "broken", "broken EPUB"),
        ("a.epub", "cut", "not a whole EPUB"),
    ],
)
def test_books(run: Run, tiny: Path, tmp_path: Path, name: str, kind: str, said: str) -> None:
    make_book(tmp_path / name, kind)
    complaint = run("write", tmp_path / name, "--model", tiny).complaint
    assert said in complaint
    assert str(tmp_path / name) in complaint


def test_nothing_on_standard_input(run: Run, tiny: Path) -> None:
    assert "standard input is empty" in run("write", "-", "--model", tiny, stdin=b"").complaint


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(directory: Path, kind: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    weights = directory / "model.safetensors"
    if kind == "no config":
        (directory / "config.json").unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no tokenizer":
        (directory / "tokenizer.json").unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "unknown key":
        change_config(directory, n_head=4)
    elif kind == "rope":
        change_config(directory, attn_config=config["attn_config"] | {"rope": True})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no config", "has no config.json"),
        ("no weights", "holds no weights"),
        ("no tokenizer", "has no tokenizer.json"),
        ("truncated", "damaged or incomplete"),
        ("unknown key", "unknown key 'n_head'; the nearest known key is 'n_heads'"),
        ("rope", "rope = True, which is not run here"),
    ],
)
def test_models(run: Run, tiny: Path, book: Path, tmp_path: Path, kind: str, said: str) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    spoil(tmp_path / "model", kind)
    assert said in run("write", book, "--model", tmp_path / "model").complaint


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None)), "shows no model"),
        (PermissionError(13, "Permission denied"), "set HF_HOME"),
        (ConnectionError("no route"), "connect to the network"),
    ],
)
def test_hub(run: Run, book: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("list_repo_files", "hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)
    complaint = run("write", book, "--model", "someone/unknown").complaint
    assert "someone/unknown" in complaint
    assert said in complaint


@pytest.mark.parametrize("name", ["mpt-7b-storywriter", "tiny"])
def test_a_named_size_has_no_weights(run: Run, book: Path, name: str) -> None:
    assert f"{name} is the name of an architecture" in run("write", book, "--model", name).complaint


def leave_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=num_bytes))


def test_a_book_longer_than_memory(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_memory(monkeypatch, 4 * 2**20)
    monkeypatch.setattr(Engine, "_read", lambda *_: pytest.fail("reading had begun"))
    complaint = run("write", "-", "--model", tiny, stdin=BOOK.encode() * 200).complaint
    assert "tokens would fit" in complaint
    assert "there is memory for" in complaint


def test_weights_larger_than_memory(run: Run, tiny: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_memory(monkeypatch, 300_000)
    complaint = run("write", book, "--model", tiny).complaint
    assert "the weights of" in complaint
    assert "--dtype bfloat16 halves that" in complaint


def test_positions_end(run: Run, with_positions: Path, book: Path) -> None:
    longer = run("write", book, "--model", with_positions, "--max-seq-len", 100_000)
    assert "learned positions for 64 tokens" in longer.complaint
    too_long = run("write", "-", "--model", with_positions, stdin=BOOK.encode() * 9)
    assert "more than the 64 positions" in too_long.complaint
    assert "ALiBi" not in too_long.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top-p", 1.4], "top_p must be in (0, 1], got 1.4"),
        (["--temperature", "nan"], "temperature must be"),
        (["--min-p", 2], "min_p must be"),
        (["--top-k", -1], "top_k must be"),
        (["--repetition-penalty", 0], "repetition_penalty must be"),
        (["--seed", -1], "seed must be"),
        (["--stop", ""], "--stop is empty"),
        (["--prompt", "\udcff"], "--prompt is not text"),
        (["--device", "quantum"], "device 'quantum' is not on this machine"),
        (["--device", "cpu:7"], "device 'cpu:7' is not on this machine"),
        (["--dtype", "float8"], "dtype must be auto, float32, bfloat16, float16, got 'float8'"),
        (["--kv-storage", "int3"], "--kv-storage must be auto, float32, bfloat16, int8, int4, got 'int3'"),
        (["--epsilon", 1], "--epsilon must be in [0, 1), got 1"),
        (["--epsilon", "nan"], "--epsilon must be in [0, 1), got nan"),
        (["--model", ""], "neither an existing directory"),
    ],
)
def test_values(run: Run, book: Path, options: list[object], said: str) -> None:
    assert said in run("write", book, *options).complaint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "--nonsense; `epilogue --help`"),
        (["wrte"], "'wrte'"),
        (["write", "--nonsense"], "`epilogue write --help`"),
        (["write", "a", "b"], "`epilogue write --help`"),
        (["write", "--max-new-tokens", "many"], "--max-new-tokens"),
        (["write", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["write", "--max-seq-len", "0"], "--max-seq-len"),
        (["train"], "RECIPE"),
        (["prepare", "a.txt"], "--out"),
    ],
)
def test_usage(run: Run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert said in done.complaint
    assert len(done.err.splitlines()) == 1


def test_debug_shows_the_traceback(run: Run) -> None:
    for arguments in (("--debug", "write", "none.txt"), ("write", "none.txt", "--debug")):
        done = run(*arguments)
        assert done.code == 2
        assert "Traceback" in done.err
        assert done.err.splitlines()[-1].startswith("epilogue: there is no file")


def test_a_book_may_be_called_as_an_option_is(run: Run) -> None:
    assert "there is no file --debug" in run("write", "--", "--debug").complaint
