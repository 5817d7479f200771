"""Keeps books that a model is to be judged on out of what it is trained on: by name, number and shared wording."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from epilogue.corpus.books import SourceBook
from epilogue.corpus.shingles import Hashes, shingle_hashes, word_hashes

RUN_WORDS = 13  # as GPT-3 and The Pile look for overlap
MOST_SHARED = 0.01  # of either book's 13-word runs: quotations stay below, excerpts and editions do not


@dataclass(frozen=True)
class HeldOutBooks:
    """Every 13-word run of the books to keep out, and their names.

    Attributes:
        ids: ids, Gutenberg numbers and "title by author" in letters only, of all of them.
        titles: of those whose text is given, in order.
        runs: their distinct runs, sorted.
        owners: for each run, the place in ``titles`` of (one of) its books; int32, same shape.
        num_runs: how many distinct runs each has.
    """

    ids: frozenset[str]
    titles: tuple[str, ...]
    runs: Hashes
    owners: npt.NDArray[np.int32]
    num_runs: npt.NDArray[np.int64]

    def find(self, book: SourceBook, words: Hashes) -> str:
        """Why the book must not be trained on, in a clause; empty if it may."""
        if named := self.ids.intersection(book_names(book)):
            return f"it is named among the books held out ({min(named)})"
        if not len(self.runs) or len(words) < RUN_WORDS:
            return ""
        runs = np.unique(shingle_hashes(words, RUN_WORDS))
        places = np.searchsorted(self.runs, runs).clip(max=len(self.runs) - 1)
        owners = self.owners[places[self.runs[places] == runs]]
        if not len(owners):
            return ""
        shared = np.bincount(owners, minlength=len(self.titles))
        shares = np.maximum(shared / np.maximum(self.num_runs, 1), shared / len(runs))
        worst = int(shares.argmax())
        if shares[worst] <= MOST_SHARED:
            return ""
        return f"it shares {shared[worst]} runs of 13 words with {self.titles[worst]!r}, held out"

    def save(self, path: Path) -> None:
        """Write as one .npz file."""
        with path.open("wb") as out:
            np.savez(
                out,
                ids=np.array(sorted(self.ids), dtype=np.str_),
                titles=np.array(self.titles, dtype=np.str_),
                runs=self.runs,
                owners=self.owners,
                num_runs=self.num_runs,
            )

    @classmethod
    def load(cls, path: Path) -> "HeldOutBooks":
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as saved:
            return cls(
                frozenset(saved["ids"].tolist()),
                tuple(saved["titles"].tolist()),
                saved["runs"],
                saved["owners"],
                saved["num_runs"],
            )


def hold_out(books: Iterable[SourceBook], names: Sequence[str] = ()) -> HeldOutBooks:
    """An index of books to keep out: of their texts, and of further ``names`` (ids, Gutenberg numbers, titles)."""
    ids, titles, parts = {_letters(name) for name in names}, [], []
    for book in books:
        ids |= book_names(book)
        titles.append(book.title or book.id)
        parts.append(np.unique(shingle_hashes(word_hashes(book.text), RUN_WORDS)))
    owners = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    runs, first = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]), return_index=True)
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    return HeldOutBooks(frozenset(ids - {""}), tuple(titles), runs, owners[first], sizes)


def book_names(book: SourceBook) -> set[str]:
    """What a book may be called in a list: its id, its number, "title by author"; in small letters and digits only."""
    names = {_letters(book.id), _letters(f"{book.title} by {book.author}") if book.title and book.author else ""}
    if book.gutenberg_id:
        names.add(_letters(f"gutenberg:{book.gutenberg_id}"))
    return names - {""}


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
