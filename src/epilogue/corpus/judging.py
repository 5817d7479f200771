"""The checks that a book goes through, one after another, each a function of the book alone."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from epilogue.corpus.books import SourceBook
from epilogue.corpus.catalogue import CatalogueEntry
from epilogue.corpus.contamination import HeldOutBooks
from epilogue.corpus.fiction import bundled_classifier
from epilogue.corpus.genre import MOST_DRAMA, MOST_VERSE, drama_share, is_fiction_by_catalogue, verse_share
from epilogue.corpus.language import find_languages
from epilogue.corpus.quality import MOST_WORDS, measure_quality, quality_faults

ANY = "any"
FICTION = "fiction"
LEAST_LANGUAGE_SHARE = 0.8
_ENGLISH = "en"
CATALOGUE_FILE, HELD_OUT_FILE = "catalogue.json", "held-out.npz"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What books are wanted.

    Attributes:
        language: ISO 639-1 code, or "any".
        genre: "fiction" or "any". Fiction is judged in English, and in other languages as far as a catalogue, verse and
            the form of plays tell.
        least_words: of a book.
    """

    language: str = _ENGLISH
    genre: str = FICTION
    least_words: int = 2000

    def __post_init__(self) -> None:
        if self.genre not in (FICTION, ANY):
            raise ValueError(f"genre is {self.genre!r}, wanted {FICTION} or {ANY}")
        if not self.language.isalpha() or not self.language.islower():
            raise ValueError(f"language is {self.language!r}, wanted a code such as en, or {ANY}")
        if self.least_words < 1:
            raise ValueError(f"least_words is {self.least_words}, wanted at least 1")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_language(book: SourceBook, wanted: Wanted) -> None:
    """Drop what is not, or not for the most part, in the wanted language."""
    found = find_languages(book.text)
    share = found.shares[found.main]
    book.measures |= {"language": found.main, "language_share": share}
    if wanted.language == ANY:
        return
    if found.main != wanted.language:
        book.drop("language", f"{share:.0%} of its windows are in {found.main}, wanted {wanted.language}")
    elif share < LEAST_LANGUAGE_SHARE:
        book.drop("mixed languages", f"only {share:.0%} of its windows are in {found.main}, wanted 80%")


def check_genre(book: SourceBook, wanted: Wanted, catalogue: dict[str, CatalogueEntry]) -> None:
    """Drop verse and plays, and what catalogue or, where it is silent, classifier call no fiction."""
    entry = catalogue.get(book.gutenberg_id)
    if entry is not None:
        book.title, book.author = book.title or entry.title, book.author or entry.author
    if wanted.genre == ANY:
        return
    verse, drama = verse_share(book.text), drama_share(book.text)
    book.measures |= {"verse": round(verse, 4), "drama": round(drama, 4)}
    if verse > MOST_VERSE:
        book.drop("verse", f"{verse:.0%} of it is verse, wanted at most {MOST_VERSE:.0%}")
    elif drama > MOST_DRAMA:
        book.drop("play", f"{drama:.0%} of its paragraphs are speeches of a play, wanted at most {MOST_DRAMA:.0%}")
    elif (said := None if entry is None else is_fiction_by_catalogue(entry)) is not None and entry is not None:
        if not said:
            of = ", ".join((*entry.classes, *entry.subjects))
            book.drop("not fiction (catalogue)", f"the catalogue has it under {of}")
    elif book.measures.get("language") == _ENGLISH:
        score = round(bundled_classifier().score(book.text), 3)
        book.measures["fiction_score"] = score
        if score <= 0:
            book.drop("not fiction (classifier)", f"its score is {score:.2f}, wanted more than 0")


def check_quality(book: SourceBook, wanted: Wanted) -> None:
    """Drop what is too short, too long, or no sound text."""
    count = book.text.count(" ") + book.text.count("\n\n") + 1
    book.measures["words"] = count
    if count < wanted.least_words:
        book.drop("too short", f"it has {count} words, wanted at least {wanted.least_words}")
    elif count > MOST_WORDS:
        book.drop("too long", f"it has {count} words, wanted at most {MOST_WORDS}")
    else:
        book.measures |= measure_quality(book.text, book.words)
        is_english = book.measures.get("language") == _ENGLISH
        if fault := next(quality_faults(book.measures, is_english=is_english), None):
            book.drop("quality", fault)


def check_held_out(book: SourceBook, held_out: HeldOutBooks) -> None:
    """Drop what a model is to be judged on."""
    if why := held_out.find(book, book.words):
        book.drop("held out", why)


@lru_cache(maxsize=1)
def load_catalogue(work: Path) -> dict[str, CatalogueEntry]:
    """The catalogue of a selection by Gutenberg number; empty if it has none. Read once a process."""
    path = work / CATALOGUE_FILE
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {entry["id"]: CatalogueEntry.from_dict(entry) for entry in entries}


@lru_cache(maxsize=1)
def load_held_out(work: Path) -> HeldOutBooks:
    """The index of the books that a selection holds out. Read once a process."""
    return HeldOutBooks.load(work / HELD_OUT_FILE)
