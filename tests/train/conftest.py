"""Shards of the corpus and models to start from, written once."""

from pathlib import Path

import pytest

from train.material import write_shards, write_starts


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_shards(folder / "train", num_books=3, sentences=9)
    write_shards(folder / "validation", num_books=1, sentences=7)
    return folder


@pytest.fixture(scope="session")
def start(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_starts(tmp_path_factory.mktemp("start"), shards)
