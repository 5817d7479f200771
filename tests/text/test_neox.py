"""GPT-NeoX-20B's tokenizer, the one of the released MPTs, where its file lies beside the checkout."""

import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from epilogue.text import Tokenizer

MODEL_ROWS = 50432
"""Of the released models' embeddings, padded to a multiple of 128."""


def books(corpus: Path, count: int) -> Iterator[str]:
    """The openings of the first books of the corpus."""
    with (corpus / "train-000.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        for _ in range(count):
            yield json.loads(next(lines))["text"][:20_000]


def test_books_come_back(neox: Tokenizer, corpus: Path) -> None:
    for text in books(corpus, 40):
        # The tokenizer composes accents (NFC) before it looks; nothing else is lost.
        assert neox.decode(neox.encode(text)) == unicodedata.normalize("NFC", text)


def test_bytes_of_a_book_come_back(neox: Tokenizer, corpus: Path) -> None:
    text = next(books(corpus, 1))
    assert b"".join(map(neox.token_bytes, neox.encode(text))).decode() == unicodedata.normalize("NFC", text)


@given(text=st.text())
def test_any_text_comes_back(neox: Tokenizer, text: str) -> None:
    assert neox.decode(neox.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("length", range(1, 60))
def test_runs_of_spaces(neox: Tokenizer, length: int) -> None:
    """2 to 24 spaces are a token each; longer runs are several."""
    run = " " * length
    ids = neox.encode(run)
    assert neox.decode(ids) == run
    assert len(ids) == max(1, -(-length // 24))
    assert neox.decode(neox.encode(f"a{run}b\n{run}c")) == f"a{run}b\n{run}c"


def test_rows_without_a_token_say_nothing(neox: Tokenizer) -> None:
    empty = range(neox.vocab_size, MODEL_ROWS)
    assert (empty.start, len(empty)) == (50277, 155)
    assert neox.decode(list(empty)) == ""
    assert all(neox.token_bytes(row) == b"" for row in empty)
    assert neox.decode([*neox.encode("the end"), *empty, *neox.encode(" of it")]) == "the end of it"


def test_every_other_row_says_something_but_the_special_ones(neox: Tokenizer) -> None:
    silent = [row for row in range(neox.vocab_size) if not neox.token_bytes(row)]
    assert [neox.name_of(row) for row in silent] == ["<|endoftext|>", "<|padding|>"]
    assert (neox.eos_id, neox.padding_id) == (0, 1)


def test_same_ids_as_transformers(neox: Tokenizer, corpus: Path, neox_tokenizer: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(neox_tokenizer)
    for text in [*books(corpus, 10), "  two   three    four\t\n\n\n  ", "naïve naïve 🙂 “—…”"]:
        ids = neox.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == neox.decode(ids)
