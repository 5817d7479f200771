"""A folder that appears at its place whole, or not at all, whatever ends the program that writes it."""

import os
import shutil
from pathlib import Path

_SUFFIX = ".partial"


def partial_of(folder: Path) -> Path:
    """What a folder is called until it is whole."""
    return folder.with_name(folder.name + _SUFFIX)


def begin_folder(folder: Path) -> Path:
    """An empty ``folder.partial`` to write into; what a program that was killed left there is removed."""
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish_folder(partial: Path) -> Path:
    """Have everything in ``folder.partial`` on the disk, then give it the name ``folder`` and return that.

    Raises:
        OSError: the file system refuses, or there is a folder of that name with something in it.
    """
    folder = partial.with_name(partial.name.removesuffix(_SUFFIX))
    for path in (*partial.rglob("*"), partial):
        _flush(path)
    partial.rename(folder)
    _flush(folder.parent)
    return folder


def remove_folder(folder: Path) -> None:
    """Delete a folder such that a crash halfway leaves it under another name, never as one that looks whole."""
    doomed = partial_of(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    """Have the system write to the disk what it still holds back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
