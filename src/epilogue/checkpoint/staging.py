"""Files that appear in a directory all at once, or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from uuid import uuid4

import psutil

from epilogue.checkpoint.files import reason
from epilogue.data.publish import begin_folder, publish_folder
from epilogue.errors import CheckpointError

_SUFFIX = ".partial"


class Staging:
    """New files for a directory, written beside their places under hidden names until ``commit``.

    Until then the directory's own files are untouched, and leaving the ``with`` block without ``commit`` removes what
    was written. One writer a directory: what an earlier one left when it was killed is cleared away.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: list[str] = []

    def __enter__(self) -> "Staging":
        self._directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._directory.glob(f".*{_SUFFIX}"):
            leftover.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in self._names:
            with suppress(OSError):  # nothing hides the error that led here
                self._partial(name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Where to write the content of the file of this name; order of calls is the order of appearance."""
        self._names.append(name)
        return self._partial(name)

    def commit(self, *, seal: str, stale: Iterable[str]) -> None:
        """Put the files in their places.

        Args:
            seal: the file without which the directory counts as incomplete. It goes first and its successor comes
                last, so that no crash leaves a mixture that looks whole.
            stale: files to remove, where they exist.

        Raises:
            OSError: the file system refuses; the directory may lack its seal.
        """
        for name in self._names:
            _flush(self._partial(name))
        (self._directory / seal).unlink(missing_ok=True)
        _flush(self._directory)
        for name in stale:
            (self._directory / name).unlink(missing_ok=True)
        for name in sorted(self._names, key=lambda name: name == seal):
            if name == seal:
                _flush(self._directory)
            self._partial(name).replace(self._directory / name)
        _flush(self._directory)

    def _partial(self, name: str) -> Path:
        return self._directory / f".{name}{_SUFFIX}"


@contextmanager
def whole_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """One file to write, which appears under its name when the block is left without an error, and not before.

    Any number of processes may write files of one name; the last one stays. What a killed one has left is cleared
    away by ``clear_leftovers``.

    Args:
        path: replaced if it is there.
        mode: who may read it, within the process's umask; its owner alone if nothing else is said.

    Raises:
        OSError: the file system refuses; nothing has changed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}{_SUFFIX}")
    try:
        with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # nothing hides the error that led here
            partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some systems cannot open folders; the file is whole either way
        _flush(path.parent)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block is left without an error, and is removed otherwise.

    Raises:
        CheckpointError: the file system refuses, or there is a folder of that name with something in it.
    """
    try:
        partial = begin_folder(folder)
        try:
            yield partial
            publish_folder(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({reason(error)}); make room or name another") from error


def clear_leftovers(directory: Path) -> None:
    """Remove the files that ``whole_file`` had begun in processes that are no more."""
    for partial in directory.glob(f".*{_SUFFIX}"):
        parts = partial.name.split(".")
        if len(parts) >= 4 and parts[-3].isdecimal() and not psutil.pid_exists(int(parts[-3])):
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system write to the disk what it still holds back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
