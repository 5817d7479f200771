import pytest

from epilogue.text.chapters import drop_contents, find_headings, make_chapters
from epilogue.text.paragraphs import Block

PROSE = "The wind went round to the north in the night, and by the morning nobody could see the end of the pier. " * 3


def titles(*paragraphs: str, title: str = "") -> list[str]:
    return [chapter.title for chapter in make_chapters([Block(text) for text in paragraphs], title)]


@pytest.mark.parametrize(
    "heading",
    [
        "CHAPTER I", "Chapter 1. The Pier", "CHAPTER TWENTY-ONE", "BOOK THE FIRST", "PART TWO", "Part II: The Sea",
        "PROLOGUE", "Epilogue.", "THE FIRST BOOK", "Preface", "Chapter the Last", "CHAPTER IV.\nTHE PIER", "Stave One",
    ],
)  # fmt: skip
def test_headings_by_their_words(heading: str) -> None:
    assert find_headings([PROSE, heading, PROSE]) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "Part one of the plan was simple.", "Chapter I was reading lay open.", "Book of Hours", "I", "“Chapter One.”",
        "Conclusions were drawn.", "CHAPTER I. " + PROSE, "Part two, and", "1984", "The third man laughed.",
    ],
)  # fmt: skip
def test_sentences_are_no_headings(text: str) -> None:
    assert find_headings([PROSE, text, PROSE]) == []


@pytest.mark.parametrize(
    "numbers", [["I", "II", "III"], ["1.", "2.", "3."], ["I. The Pier", "II. The Sea", "III. Home"]]
)
def test_numbers_count_when_they_count_up(numbers: list[str]) -> None:
    paragraphs = [text for number in numbers for text in (number, PROSE)]
    assert find_headings(paragraphs) == [0, 2, 4]
    assert find_headings(paragraphs[2:]) == []


def test_numbers_may_begin_again_in_every_part() -> None:
    parts = ["PART ONE", "I", PROSE, "II", PROSE, "PART TWO", "I", PROSE, "II", PROSE]
    assert titles(*parts) == ["PART ONE - I", "II", "PART TWO - I", "II"]


def test_numbered_list_is_no_chapters() -> None:
    assert find_headings([PROSE, "1. Salt", "2. Flour", "3. Water", PROSE]) == []


def test_chapters_hold_the_whole_text() -> None:
    paragraphs = ["To Anna", "CHAPTER I", "THE PIER", PROSE.strip(), "CHAPTER II", PROSE.strip()]
    chapters = make_chapters([Block(text) for text in paragraphs])
    assert [chapter.title for chapter in chapters] == ["", "CHAPTER I - THE PIER", "CHAPTER II"]
    assert "\n\n".join(chapter.text for chapter in chapters) == "\n\n".join(paragraphs)


def test_part_with_a_title_of_its_own_opens_with_its_first_chapter() -> None:
    assert titles("BOOK I", "THE COAST", "CHAPTER I", PROSE, "CHAPTER II", PROSE) == [
        "BOOK I - THE COAST - CHAPTER I",
        "CHAPTER II",
    ]


def test_text_without_headings_is_one_chapter() -> None:
    assert titles(PROSE, "“No,” he said.") == [""]


@pytest.mark.parametrize("word", ["CONTENTS", "Table of Contents", "Contents."])
@pytest.mark.parametrize("entries", [["I. The Pier  3\nII. The Sea  19"], ["I. The Pier", "II. The Sea"]])
def test_contents_are_dropped(word: str, entries: list[str]) -> None:
    body = ["To Anna", "CHAPTER I", "THE PIER", PROSE, "CHAPTER II", "THE SEA", PROSE]
    blocks = drop_contents([Block(text) for text in ["A Novel", word, *entries, *body]])
    assert [block.text for block in blocks] == ["A Novel", *body]


def test_contents_of_a_book_in_parts() -> None:
    entries = [
        "PART ONE\nThe Coast",
        "1. The Pier . . . 3\n2. The Sea . . . 9",
        "PART TWO\nThe Town",
        "3. Home . . . 40",
    ]
    body = [
        "PART ONE--The Coast",
        "1",
        "The Pier",
        PROSE,
        "2",
        "The Sea",
        PROSE,
        "PART TWO--The Town",
        "3",
        "Home",
        PROSE,
    ]
    assert [b.text for b in drop_contents([Block(t) for t in ["CONTENTS", *entries, *body]])] == body


def test_word_contents_in_the_text_loses_nothing() -> None:
    paragraphs = ["Contents", "He read the label twice.", PROSE]
    assert [block.text for block in drop_contents([Block(text) for text in paragraphs])] == paragraphs


def test_list_of_headings_without_a_heading_of_its_own_is_no_chapters() -> None:
    headings = [f"CHAPTER {number}" for number in ("I", "II", "III", "IV")]
    body = [text for heading in headings for text in (heading, PROSE)]
    assert titles(*headings, *body) == headings


def test_marked_headings_are_taken_as_they_are() -> None:
    blocks = [Block("A Novel", 1), Block("The Pier", 2), Block(PROSE), Block("The Sea", 2), Block(PROSE)]
    assert [chapter.title for chapter in make_chapters(blocks)] == ["", "The Pier", "The Sea"]
    assert [chapter.title for chapter in make_chapters(blocks[1:])] == ["The Pier", "The Sea"]
