"""Files that were damaged or made to harm: one sentence, at once, and no memory by what a header claims."""

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint.material import tiny_config, tiny_state
from epilogue.checkpoint import export_gguf, load_checkpoint, load_config, load_tokenizer, save_checkpoint
from epilogue.checkpoint.gguf import file as container
from epilogue.checkpoint.gguf.file import GGUFFile
from epilogue.errors import CheckpointError
from epilogue.text import train_tokenizer

HUGE = 2**63


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(*, version: int = 3, num_tensors: int = 0, num_entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries) + rest


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int, *, num_dimensions: int | None = None) -> bytes:
    count = len(shape) if num_dimensions is None else num_dimensions
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def one_tensor(*arguments: object, **options: object) -> bytes:
    return header(num_tensors=1, rest=tensor(b"w", *arguments, **options) + bytes(64))  # type: ignore[arg-type]


ALIGNMENT = b"general.alignment"
HOSTILE = {
    "nothing": (b"", "it is empty"),
    "another format": (b"PK\3\4" + bytes(60), "begins with"),
    "three bytes": (b"GGU", "ends in the middle"),
    "version 1": (header(version=1), "version is 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version is 50331648"),
    "more tensors than bytes": (header(num_tensors=HUGE), "claims 9,223,372,036,854,775,808 tensors"),
    "more entries than bytes": (header(num_entries=10**10), "claims 10,000,000,000 entries"),
    "a key of 10 GB": (header(num_entries=1, rest=struct.pack("<Q", 10**10) + bytes(64)), "10,000,000,000 characters"),
    "a value of 10 GB": (header(num_entries=1, rest=entry(b"k", 8, struct.pack("<Q", 10**10))), "characters"),
    "an array of 2**63": (header(num_entries=1, rest=entry(b"k", 9, struct.pack("<IQ", 4, HUGE))), "items"),
    "an array of strings": (header(num_entries=1, rest=entry(b"k", 9, struct.pack("<IQ", 8, HUGE))), "strings"),
    "arrays in an array": (
        header(num_entries=1, rest=entry(b"k", 9, struct.pack("<IQ", 9, 1) + bytes(99))),
        "items of type 9",
    ),
    "an unknown type": (header(num_entries=1, rest=entry(b"k", 77, bytes(8))), "unknown type 77"),
    "not UTF-8": (header(num_entries=1, rest=entry(b"\xff", 4, bytes(4))), "not UTF-8"),
    "a key twice": (header(num_entries=2, rest=2 * entry(b"k", 4, bytes(4))), "key twice"),
    "a tensor twice": (header(num_tensors=2, rest=2 * tensor(b"w", (4,), 0, 0) + bytes(96)), "tensor name twice"),
    "no alignment": (header(num_entries=1, rest=entry(ALIGNMENT, 4, bytes(4))), "general.alignment is 0"),
    "alignment 24": (header(num_entries=1, rest=entry(ALIGNMENT, 4, struct.pack("<I", 24))), "general.alignment is 24"),
    "a word as alignment": (header(num_entries=1, rest=entry(ALIGNMENT, 8, string(b"x"))), "general.alignment is 'x'"),
    "shape -1": (one_tensor((2**64 - 1,), 0, 0), "past the end"),
    "a product past 2**64": (one_tensor((2**32, 2**32, 4), 0, 0), "past the end"),
    "shape 0": (one_tensor((0, 4), 0, 0), r"has the shape \[4, 0\]"),
    "no dimensions": (one_tensor((), 0, 0), "has 0 dimensions"),
    "many dimensions": (one_tensor((1,), 0, 0, num_dimensions=2**31), "has 2147483648 dimensions"),
    "an offset past the end": (one_tensor((4,), 0, 10**12), "past the end"),
    "an offset past 2**63": (one_tensor((4,), 0, 2**64 - 32), "past the end"),
    "an odd offset": (one_tensor((4,), 0, 1), "does not begin at a multiple of 32"),
    "a type of another kind": (one_tensor((256,), 19, 0), "ggml type 19"),
    "half a block": (one_tensor((33,), 8, 0), r"has the shape \[33\] as Q8_0"),
}


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_one_sentence_and_no_memory(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=words) as raised:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_header_that_really_is_10_gb_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as stream:
        stream.write(header(num_entries=1, rest=entry(b"k", 8, struct.pack("<Q", 10**10))))
        stream.truncate(10**10 + 200)  # a hole: it takes no room on the disk
    with pytest.raises(CheckpointError, match="claims 10,000,000,000 characters"):
        GGUFFile(path)


def test_millions_of_empty_strings_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_MOST_ITEMS", 100)
    path = tmp_path / "x.gguf"
    path.write_bytes(header(num_entries=1, rest=entry(b"k", 9, struct.pack("<IQ", 8, 101) + bytes(2000))))
    with pytest.raises(CheckpointError, match="claims 101 strings"):
        GGUFFile(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small file."""
    folder = tmp_path_factory.mktemp("sound")
    config = tiny_config(vocab_size=258)
    save_checkpoint(folder / "model", tiny_state(config), config)
    train_tokenizer(["x"], vocab_size=258).save(folder / "model")
    export_gguf(folder / "model", folder / "sound.gguf")
    return folder / "sound.gguf"


def written(sound: Path, out: Path, change: Callable[[dict[str, object], dict[str, np.ndarray]], None]) -> Path:
    """The same file, by ggml's writer, with something changed."""
    reader = gguf.GGUFReader(sound)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(fields, tensors)
    writer = gguf.GGUFWriter(out, str(fields.pop("general.architecture")))
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in fields.items():
        adders.get(type(value), writer.add_array)(key, value)  # type: ignore[operator]
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def setting(key: str, value: object) -> Callable[[dict[str, object], dict[str, np.ndarray]], None]:
    return lambda fields, tensors: fields.update({key: value})


WRONG = {
    "another architecture": (setting("general.architecture", "llama"), "holds a 'llama' model"),
    "a million layers": (setting("mpt.block_count", 10**6), r"mpt.block_count = 1000000; wanted a whole number"),
    "no heads": (setting("mpt.attention.head_count", 0), "head_count = 0"),
    "heads that do not divide": (setting("mpt.attention.head_count", 3), "does not divide"),
    "a word": (setting("mpt.embedding_length", "x"), "embedding_length = 'x'"),
    "a slope below 0": (setting("mpt.attention.max_alibi_bias", -1.0), "max_alibi_bias = -1.0"),
    "not a number": (setting("mpt.attention.clamp_kqv", float("nan")), "clamp_kqv = nan"),
    "no length": (lambda fields, tensors: fields.pop("mpt.context_length"), "context_length = None"),
    "no embedding": (lambda fields, tensors: tensors.pop("token_embd.weight"), "no token_embd.weight"),
    "a tensor missing": (lambda fields, tensors: tensors.pop("blk.1.ffn_up.weight"), "missing: transformer.blocks.1"),
    "a tensor more": (
        lambda fields, tensors: tensors.update({"blk.0.ffn.act.scales": np.ones(32, np.float32)}),
        "unknown: blk.0.ffn.act.scales",
    ),
    "another width": (setting("mpt.embedding_length", 2**20), "misshapen"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_sound_file_of_something_else_is_refused(
    sound: Path, tmp_path: Path, change: Callable[[dict[str, object], dict[str, np.ndarray]], None], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(written(sound, tmp_path / "x.gguf", change))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokenizer.ggml.model", "llama", "no byte-level BPE vocabulary"),
        ("tokenizer.ggml.pre", "llama-bpe", "'llama-bpe'; known here are mpt"),
        ("tokenizer.ggml.token_type", [1, 1], "do not fit"),
        ("tokenizer.ggml.merges", ["ab"], "cannot be read"),
    ],
)
def test_a_tokenizer_that_is_not_known_is_refused(
    sound: Path, tmp_path: Path, key: str, value: object, words: str
) -> None:
    def change(fields: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
        fields.pop("tokenizer.huggingface.json")
        fields[key] = value

    path = written(sound, tmp_path / "x.gguf", change)
    with pytest.raises(CheckpointError, match=words):
        load_tokenizer(path, load_config(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), place=st.floats(0, 0.9999), byte=st.integers(0, 255))
def test_any_cut_and_any_changed_byte_loads_or_is_refused(
    sound: Path, tmp_path: Path, cut: float, place: float, byte: int
) -> None:
    content = bytearray(sound.read_bytes())
    path = tmp_path / "x.gguf"
    path.write_bytes(content[: int(cut * len(content))])
    is_whole = int(cut * len(content)) == len(content)
    if not is_whole:
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    # Most of what decides anything is at the front.
    content[int(place**4 * len(content))] = byte
    path.write_bytes(content)
    with suppress(CheckpointError):
        load_tokenizer(path, load_checkpoint(path).config)
