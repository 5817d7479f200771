"""Book states: a text that was read, in a file, so that it is never read again. The format: docs/formats.md.

A state is a safetensors file: token ids, the pages that eviction has left, as they are stored, what their keys are
bounded by, and what the model expects next. The pages are a model's own numbers, so a state belongs to one model, one
storage and one epsilon; its header says which. Every byte of the file is under a checksum that is verified before
anything of it is used. Nothing in it is a path, and nothing is executed.
"""

import json
import struct
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from epilogue.checkpoint import tensor_bytes, whole_file
from epilogue.engine.engine import Engine
from epilogue.engine.sequence import Sequence
from epilogue.errors import StateError
from epilogue.kernels.paged_attention import PageTensors
from epilogue.model import PageTable, Reads

FORMAT = "epilogue book state"
VERSION = "1"
_MOST_HEADER_BYTES = 2**20
_CHECKSUMS = "zz.checksums"
_PARTS = ("data_PWD", "scale_PW", "zero_PW")
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
# Pages that are copied at a time.
_PAGES_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class StateHeader:
    """What a state says of itself."""

    fingerprint: str
    """Of the model that read it."""
    storage: str
    epsilon: float
    num_tokens: int
    title: str = ""
    model: str = ""
    """The model's name, for people."""
    read_on: str = ""
    """The day, as 2026-11-23."""


def save_state(
    path: Path, engine: Engine, sequence: Sequence, *, title: str = "", model: str = "", on: str = ""
) -> int:
    """Write what an engine has read of a text, and return how many bytes that took.

    Tokens that have not gone through the model yet are left out. The file appears whole or not at all.

    Args:
        path: replaced if it is there; its folder is.
        engine: the text's.
        sequence: open; stays as it is.
        title: of the book.
        model: a name for people.
        on: the day.

    Raises:
        ValueError: the sequence is closed.
        StateError: the file cannot be written.

    Memory: some megabytes beside the pages.
    """
    sequence.check_open()
    header = StateHeader(
        fingerprint=engine.fingerprint,
        storage=engine.pages.pool.storage,
        epsilon=engine.epsilon,
        num_tokens=sequence.table.num_tokens,
        title=title,
        model=model,
        read_on=on,
    )
    try:
        with whole_file(path) as file:
            _write(file, header, engine, sequence)
            return file.tell()
    except OSError as error:
        raise StateError(
            f"the book state {path} cannot be written ({error.strerror or error}); make room on that disk, remove "
            "states, or keep them elsewhere"
        ) from error


def read_header(path: Path) -> StateHeader:
    """What a state says of itself; its pages are not looked at.

    Raises:
        StateError: no such file, or it is no state of this version.
    """
    try:
        with open(path, "rb") as file:
            raw, size = _raw_header(file), path.stat().st_size
        content = json.loads(raw[8:]) if raw else None
    except OSError as error:
        raise StateError(f"the book state {path} cannot be read ({error.strerror or error}); read the book") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is no JSON") from error
    said = content.get("__metadata__") if isinstance(content, dict) and size else None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise _damaged(path, "it has no header of one")
    if said.get("version") != VERSION:
        raise StateError(
            f"the book state {path} is of version {str(said.get('version'))[:20]!r} and this program reads version "
            f"{VERSION}; read the book again"
        )
    return _header_of(path, said)


def read_outline(path: Path) -> tuple[list[int], PageTable]:
    """The tokens of a state, and a table that says which pages it has; none of it verified.

    The table's live pages are all called 0.

    Raises:
        StateError: they cannot be read.
    """
    tensors = _mapped(path)
    try:
        ids = tensors["ids"].tolist()
        page_ids_LKP = tensors["is_live"].long() - 1
        return ids, PageTable(page_ids_LKP, tensors["norms"].clone(), tensors["scores"].clone(), len(ids))
    except (KeyError, RuntimeError) as error:
        raise _damaged(path, "its tensors do not fit together") from error


@dataclass(frozen=True)
class CheckedState:
    """A state that is whole and belongs to an engine, not put into its pages yet."""

    path: Path
    header: StateHeader
    tensors: Mapping[str, Tensor]
    """Views of the mapped file."""


def check_state(path: Path, engine: Engine) -> CheckedState:
    """Read a state through, and find that it is whole and this engine's. For any thread: the engine is not touched.

    Raises:
        StateError: it is of another version, model, storage or epsilon, or damaged.
    """
    header = read_header(path)
    _check_belongs(path, header, engine)
    tensors = _mapped(path)
    _verify(path, tensors)
    return CheckedState(path, header, tensors)


def open_state(state: Path | CheckedState, engine: Engine) -> Sequence:
    """The text of a state, as if the engine had just read it: the same bits in its pages, and the same logits.

    Args:
        state: its file, or what ``check_state`` found there.
        engine: of the same model, storage and epsilon.

    Raises:
        StateError: it is of another version, model, storage or epsilon, or damaged.
        CapacityError: there are not enough free pages.

    Memory: the pages. The file is mapped, not read into memory first.
    """
    opening = open_in_slices(check_state(state, engine) if isinstance(state, Path) else state, engine)
    while True:
        try:
            next(opening)
        except StopIteration as done:
            return cast(Sequence, done.value)


def open_in_slices(state: CheckedState, engine: Engine) -> Generator[None, None, Sequence]:
    """What ``open_state`` does, some megabytes a step: the engine may move other texts in between.

    Raises:
        StateError: its tensors are not those of this engine.
        CapacityError: there are not enough free pages; in the first step.
    """
    try:
        return (yield from _fill(state.header, state.tensors, engine))
    except (KeyError, ValueError, IndexError, RuntimeError) as error:  # whole, and made by another program
        raise _damaged(state.path, "its tensors do not fit together") from error


def _fill(header: StateHeader, tensors: Mapping[str, Tensor], engine: Engine) -> Generator[None, None, Sequence]:
    ids, is_live_LKP = tensors["ids"].tolist(), tensors["is_live"].bool()
    table = engine.pages.adopt(is_live_LKP, tensors["norms"], tensors["scores"], header.num_tokens)
    live = table.ids_LKP[table.ids_LKP >= 0]
    for pages, name in _both(engine):
        for part in _PARTS:
            pool: Tensor | None = getattr(pages, part)
            if pool is not None:
                stored = tensors[f"{name}.{part}"]
                for some, new in zip(live.split(_PAGES_AT_ONCE), stored.split(_PAGES_AT_ONCE), strict=True):
                    pool[some.to(pool.device)] = new.to(pool.device)
                    yield
    logits_V = tensors.get("logits")
    sequence = engine.adopt(ids, table, None if logits_V is None else logits_V.clone().to(engine.model.device))
    visited_H, dense_H = tensors["visited"].clone(), tensors["dense"].clone()
    sequence.reads = Reads(visited_H, dense_H, float(tensors["omitted"][0]))
    return sequence


def _check_belongs(path: Path, header: StateHeader, engine: Engine) -> None:
    ours = (engine.fingerprint, engine.pages.pool.storage, engine.epsilon)
    kinds = ("model", "storage of keys and values", "epsilon")
    for what, is_there, wanted in zip(kinds, (header.fingerprint, header.storage, header.epsilon), ours, strict=True):
        if is_there != wanted:
            raise StateError(
                f"the book state {path} is of another {what} ({is_there}, here {wanted}); read the book again"
            )


def state_bytes(engine: Engine, sequence: Sequence) -> int:
    """About how large the file will be; not less by more than its header."""
    tensors, live, stored = _content(engine, sequence)
    pages = sum(pool[0].numel() * pool.itemsize for pool in stored.values())
    return len(live) * pages + sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())


def _content(engine: Engine, sequence: Sequence) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Small tensors by name, the ids of the pages, and by name the tensors of the pool that these are rows of."""
    tensors = _small(sequence)
    is_live_LKP = tensors["is_live"].bool()
    live = sequence.table.ids_LKP[..., : is_live_LKP.shape[2]][is_live_LKP]
    stored = {f"{name}.{part}": getattr(pages, part) for pages, name in _both(engine) for part in _PARTS}
    return tensors, live, {name: tensor for name, tensor in stored.items() if tensor is not None}


def _write(file: BinaryIO, header: StateHeader, engine: Engine, sequence: Sequence) -> None:
    """The header, the tensors in the order of their names, and last the checksums of all of these."""
    tensors, live, stored = _content(engine, sequence)
    shapes = {name: (tensor.dtype, list(tensor.shape)) for name, tensor in tensors.items()}
    shapes |= {name: (pool.dtype, [len(live), *pool.shape[1:]]) for name, pool in stored.items()}
    names = sorted(shapes)
    shapes[_CHECKSUMS] = (torch.uint8, [len(names) + 1, 8])
    raw = _raw(header, {name: shapes[name] for name in [*names, _CHECKSUMS]})
    file.write(raw)
    digests = [xxhash.xxh3_64_digest(raw)]
    for name in names:
        digest = xxhash.xxh3_64()
        for part in [tensor_bytes(tensors[name])] if name in tensors else _pages(stored[name], live):
            digest.update(part)
            file.write(part)
        digests.append(digest.digest())
    file.write(b"".join(digests))


def _small(sequence: Sequence) -> dict[str, Tensor]:
    """Everything but the pages."""
    table, stop = sequence.table, sequence.table.num_pages
    tensors = {
        "ids": torch.tensor(sequence.ids[: table.num_tokens], dtype=torch.int32),
        "is_live": (table.ids_LKP[..., :stop] >= 0).to(torch.uint8),
        "norms": table.norms_LKP[..., :stop],
        "scores": table.scores_LHP[..., :stop],
        "visited": sequence.reads.visited_H,
        "dense": sequence.reads.dense_H,
        "omitted": torch.tensor([sequence.reads.omitted_mass], dtype=torch.float64),
    }
    is_known = sequence.logits_V is not None and sequence.num_pending == 0
    return tensors | ({"logits": sequence.logits_V} if is_known and sequence.logits_V is not None else {})


def _pages(pool: Tensor, live: Tensor) -> Iterator[memoryview]:
    for some in live.split(_PAGES_AT_ONCE):
        yield tensor_bytes(pool[some.to(pool.device)])


def _both(engine: Engine) -> tuple[tuple[PageTensors, str], tuple[PageTensors, str]]:
    pool = engine.pages.pool
    return (pool.keys, "keys"), (pool.values, "values")


def _raw(header: StateHeader, shapes: dict[str, tuple[torch.dtype, list[int]]]) -> bytes:
    """The first bytes of a safetensors file: the length of its JSON, and that, filled up to eight bytes."""
    said = {name: value if isinstance(value, str) else repr(value) for name, value in asdict(header).items()}
    content: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION} | said}
    stop = 0
    for name, (dtype, shape) in shapes.items():
        start, stop = stop, stop + torch.Size(shape).numel() * dtype.itemsize
        content[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _raw_header(file: BinaryIO) -> bytes:
    """Nothing if it cannot be one."""
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    return prefix + file.read(length) if 0 < length <= _MOST_HEADER_BYTES else b""


def _header_of(path: Path, said: dict[str, Any]) -> StateHeader:
    kinds: dict[str, type] = {"epsilon": float, "num_tokens": int}
    try:
        return StateHeader(**{f.name: kinds.get(f.name, str)(said[f.name]) for f in fields(StateHeader)})
    except (KeyError, ValueError) as error:
        raise _damaged(path, "its header is not whole") from error


def _mapped(path: Path) -> dict[str, Tensor]:
    """All tensors by name, as views of the mapped file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def _verify(path: Path, tensors: dict[str, Tensor]) -> None:
    """Every byte against the checksums."""
    with open(path, "rb") as file:
        digests = [xxhash.xxh3_64_digest(_raw_header(file))]
    digests += [xxhash.xxh3_64_digest(tensor_bytes(tensors[name])) for name in sorted(tensors) if name != _CHECKSUMS]
    if _CHECKSUMS not in tensors or b"".join(digests) != bytes(tensors[_CHECKSUMS].flatten().tolist()):
        raise _damaged(path, "its checksums are wrong")


def _damaged(path: Path, why: str) -> StateError:
    return StateError(f"the book state {path} is damaged or none at all ({why.rstrip('.')}); read the book again")
