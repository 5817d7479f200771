"""A small tokenizer, and shards of books of given lengths in which every token says where it stands."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from epilogue.data import Shards, ShardWriter
from epilogue.text import Tokenizer, train_tokenizer

MakeShards = Callable[[Sequence[int]], Shards]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The rain came down on the harbour, and the rain went on all night."], vocab_size=280)


@pytest.fixture
def make_shards(tmp_path: Path, tokenizer: Tokenizer) -> MakeShards:
    """Shards with a book of each length, end-of-text counted; book b has the ids b * 1000 + 1, b * 1000 + 2, ..."""

    def make(lengths: Sequence[int]) -> Shards:
        folder = tmp_path / f"shards-{len(list(tmp_path.iterdir()))}"
        writer = ShardWriter(folder, tokenizer, max_file_tokens=300)
        for book, length in enumerate(lengths):
            ids = range(book * 1000 + 1, book * 1000 + length)
            writer.add(ids, id=f"book-{book}", title="", text=b"ab" * length)
        writer.finish()
        return Shards(folder)

    return make
