"""The container: a table of metadata, a table of tensors, and the tensors' bytes.

Every count, length and offset in the file is checked against the bytes that are really there before it is used, so
that a file can neither make a reader allocate what it claims nor read past its end. The layout is that of
ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from epilogue.checkpoint.gguf.types import TENSOR_TYPES, TensorType
from epilogue.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_HEADER_BYTES = 64 << 20
_MOST_ITEMS = 1 << 22
_MOST_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlace:
    """One line of the table of tensors."""

    shape: tuple[int, ...]
    """Rows first, as everywhere here; the file has the row's length first."""
    type: TensorType
    start: int
    """Where its bytes begin, counted from the beginning of the file."""

    @property
    def num_bytes(self) -> int:
        """The tensor's bytes in the file."""
        return self.type.num_bytes(self.shape)


class GGUFFile:
    """An open .gguf: ``metadata`` by key, ``tensors`` by name, and ``raw`` for a tensor's bytes.

    Metadata are Python numbers, strings, lists of strings, or numpy arrays. The file is mapped, not read.

    Raises:
        CheckpointError: not a GGUF file, of another version, cut short, or with a header that contradicts its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Copy on write: nothing writes, but torch warns of memory that could not be written.
            self._bytes: np.ndarray[Any, np.dtype[np.uint8]] = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else "it is empty"
            raise CheckpointError(f"{path} cannot be read ({what}); give a whole .gguf file") from error
        header = _Header(self._bytes, path)
        num_tensors, num_entries = header.begin()
        self.metadata = {header.string(): header.value(header.number("<u4")) for _ in range(num_entries)}
        if len(self.metadata) != num_entries:
            raise header.damaged("it has a metadata key twice")
        places = [header.place() for _ in range(num_tensors)]
        start = self._data_start(header)
        self.tensors = {name: TensorPlace(shape, type_, start + offset) for name, shape, type_, offset in places}
        if len(self.tensors) != num_tensors:
            raise header.damaged("it has a tensor name twice")
        for name, place in self.tensors.items():
            if place.start % self.alignment:
                raise header.damaged(f"the tensor {name[:80]!r} does not begin at a multiple of {self.alignment}")
            if place.start + place.num_bytes > len(self._bytes):
                raise header.damaged(f"the tensor {name[:80]!r} lies past the end of the file")

    def raw(self, name: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The bytes of a tensor, a view of the mapped file."""
        place = self.tensors[name]
        return self._bytes[place.start : place.start + place.num_bytes]

    def _data_start(self, header: "_Header") -> int:
        self.alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(self.alignment, int) or self.alignment < 8 or self.alignment & (self.alignment - 1):
            raise header.damaged(f"general.alignment is {self.alignment!r}, not a power of two from 8 on")
        return -(-header.position // self.alignment) * self.alignment


class _Header:
    """Reads the header from front to back, never past the file's end or a sane size."""

    def __init__(self, content: "np.ndarray[Any, np.dtype[np.uint8]]", path: Path) -> None:
        self._content = content
        self._path = path
        self._end = min(len(content), _MOST_HEADER_BYTES)
        self.position = 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is no sound GGUF file: {what}; fetch the file again")

    def begin(self) -> tuple[int, int]:
        """Magic and version checked; the numbers of tensors and of metadata entries."""
        if (magic := self._take(4)) != _MAGIC:
            raise self.damaged(f"it begins with {magic!r}, wanted {_MAGIC!r}")
        version = self.number("<u4")
        if version not in _VERSIONS:
            raise self.damaged(f"its version is {version}, wanted {_VERSIONS[0]} or {_VERSIONS[1]} (little-endian)")
        # A tensor's line takes 32 bytes at least and an entry 13: more of them cannot follow.
        return self._count("tensors", 32), self._count("entries of metadata", 13)

    def number(self, kind: str) -> int:
        return int(np.frombuffer(self._take(np.dtype(kind).itemsize), kind)[0])

    def string(self) -> str:
        size = self._count("characters", 1)
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a string in it is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.number("<u4"))
        if kind not in _SCALARS:
            raise self.damaged(f"a metadata value has the unknown type {kind}")
        return np.frombuffer(self._take(np.dtype(_SCALARS[kind]).itemsize), _SCALARS[kind])[0].item()

    def place(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        """Name, shape, type, and offset from the beginning of the tensors' bytes."""
        name = self.string()
        num_dimensions = self.number("<u4")
        if not 1 <= num_dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {name[:80]!r} has {num_dimensions} dimensions")
        shape = tuple(self.number("<u8") for _ in range(num_dimensions))[::-1]
        kind, offset = self.number("<u4"), self.number("<u8")
        if kind not in TENSOR_TYPES:
            known = ", ".join(type_.name for type_ in TENSOR_TYPES.values())
            raise CheckpointError(
                f"{self._path}: the tensor {name[:80]!r} has the ggml type {kind}, which is not read here; "
                f"use a file whose types are among {known}"
            )
        if not math.prod(shape) or shape[-1] % TENSOR_TYPES[kind].block_weights:
            raise self.damaged(f"the tensor {name[:80]!r} has the shape {list(shape)} as {TENSOR_TYPES[kind].name}")
        return name, shape, TENSOR_TYPES[kind], offset

    def _array(self, kind: int) -> Any:
        if kind == _STRING:
            return [self.string() for _ in range(self._count("strings", 8))]
        if kind not in _SCALARS:
            raise self.damaged(f"an array of metadata has items of type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(self._count("items", dtype.itemsize) * dtype.itemsize), dtype)

    def _count(self, what: str, least_bytes: int) -> int:
        """A number of things to come, each of which takes this many bytes or more."""
        count = int(struct.unpack("<Q", self._take(8))[0])
        if count * least_bytes > self._end - self.position or (count > _MOST_ITEMS and least_bytes > 1):
            raise self.damaged(f"it claims {count:,} {what} where {self._end - self.position:,} bytes are left")
        return count

    def _take(self, size: int) -> bytes:
        if size > self._end - self.position:
            raise self.damaged("it ends in the middle of its header")
        self.position += size
        return self._content[self.position - size : self.position].tobytes()
