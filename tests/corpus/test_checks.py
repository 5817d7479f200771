"""Cleaning, language, kind and soundness of single books."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.conftest import Write
from epilogue.corpus.books import SourceBook
from epilogue.corpus.cleaning import clean_book, gutenberg_number, repair_encoding, strip_notes
from epilogue.corpus.fiction import WEIGHTS, FictionClassifier, bundled_classifier
from epilogue.corpus.genre import drama_share, verse_share
from epilogue.corpus.judging import Wanted, check_language
from epilogue.corpus.language import find_languages
from epilogue.corpus.quality import measure_quality, quality_faults
from epilogue.corpus.shingles import word_hashes

ENGLISH = "It was late in the evening when the old captain came back to the house and sat down by the fire. "
FRENCH = "Il était tard dans la soirée quand le vieux capitaine revint à la maison et s’assit près du feu. "


def test_text_that_was_decoded_wrongly_is_repaired() -> None:
    text = "“It’s a café,” she said.\n\nHe went — slowly."
    wrong = text.encode().decode("cp1252", errors="replace")
    assert (
        repair_encoding("Nothing here.\n\n" + "It’s a café".encode().decode("cp1252")) == "Nothing here.\n\nIt’s a café"
    )
    assert repair_encoding(text) == text
    assert "�" in wrong  # a curly closing quote has a byte that Windows-1252 lacks: no repair can be whole


@given(st.text(st.sampled_from("aé ô’”—“ñß.,\n"), max_size=60))
def test_sound_text_is_left_alone(text: str) -> None:
    assert repair_encoding(f"The plain words of a sound book. {text}").startswith("The plain words of a sound book.")


def test_transcribers_notes_go() -> None:
    text = "It rained.[Transcriber's Note: sic]\n\n[Transcriber’s note: page 3\nis missing.]\n\nShe [the cat] slept."
    assert strip_notes(text) == "It rained.\n\nShe [the cat] slept."


@pytest.mark.parametrize(
    ("head", "name", "number"),
    [
        ("Release Date: June, 1998 [EBook #1342]", "x.txt", "1342"),
        ("[Etext #76]", "x.txt", "76"),
        ("", "pg0084.txt", "84"),
        ("", "1342-0.txt", "1342"),
        ("", "cache/1342/1342.txt", "1342"),
        ("", "1984.txt", ""),
        ("", "chapters/12.txt", ""),
    ],
)
def test_numbers_of_project_gutenberg(head: str, name: str, number: str) -> None:
    assert gutenberg_number(head, name) == number


def test_a_book_that_cannot_be_read_says_why() -> None:
    book = SourceBook(id="x", source="x.pdf")
    clean_book(b"%PDF-1.7 ...", "x.txt", book)
    assert book.dropped == "unreadable"
    assert "a PDF" in book.why


def test_a_book_of_two_languages_is_seen_window_by_window() -> None:
    found = find_languages(ENGLISH * 250 + FRENCH * 120)
    assert found.main == "en"
    assert set(found.shares) == {"en", "fr"}
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-3)
    book = SourceBook(id="x", source="", text=ENGLISH * 250 + FRENCH * 120)
    check_language(book, Wanted())
    assert book.dropped == "mixed languages"
    book = SourceBook(id="x", source="", text=FRENCH * 200)
    check_language(book, Wanted(language="fr"))
    assert (book.dropped, book.measures["language"]) == ("", "fr")


def test_verse_and_plays_are_told_by_their_form(novel: Write) -> None:
    stanza = "O sea, O silver salt of sea,\nThat comes and goes and sings to me,\nO sea."
    turns = "\n\n".join(f"{name}. [Rising.] I never said so." for _ in range(20) for name in ("LADY B", "Jack"))
    assert verse_share("\n\n".join([stanza] * 9)) > 0.9
    assert drama_share(turns) == 1
    assert verse_share(novel(1)) == drama_share(novel(1)) == 0


def test_the_classifier_knows_a_story_from_an_argument(novel: Write, essay: Write) -> None:
    assert bundled_classifier().score(novel(1)) > 0 > bundled_classifier().score(essay(1))


def test_weights_are_small_and_come_back_as_saved(tmp_path: Path, novel: Write) -> None:
    assert WEIGHTS.stat().st_size < 100_000
    bundled_classifier().save(tmp_path / "w")
    assert FictionClassifier.load(tmp_path / "w").score(novel(2)) == bundled_classifier().score(novel(2))


def faults(text: str) -> list[str]:
    return list(quality_faults(measure_quality(text, word_hashes(text)), is_english=True))


def test_a_sound_book_has_no_faults(novel: Write) -> None:
    assert faults(novel(1)) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("the", "tl1e"), "look misread"),
        (lambda text: text.replace(" ", " 1234 "), "are numbers"),
        (lambda text: "\n\n".join([text, text]), "stood before"),
        (lambda text: text.replace(" ", " # "), "hash marks"),
        (lambda text: text.replace(" ", ""), "characters a word"),
    ],
)
def test_faults_are_named_with_their_limits(novel: Write, spoil: object, said: str) -> None:
    found = faults(spoil(novel(1)))  # type: ignore[operator]
    assert any(said in fault and "wanted at" in fault for fault in found)
