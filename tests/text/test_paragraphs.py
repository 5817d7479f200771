import pytest

from epilogue.text.paragraphs import Block, clean_paragraph, join_lines, settle_breaks, split_paragraphs

PROSE = """\
The tide had gone out while they talked, and the long flat sands lay
shining under the moon. Nobody came down the path from the well-
known house; nobody called. He waited for a sign of it--
perhaps a lamp in the upper window.  There was none."""
JOINED = (
    "The tide had gone out while they talked, and the long flat sands lay shining under the moon. Nobody came down the"
    " path from the well-known house; nobody called. He waited for a sign of it--perhaps a lamp in the upper window."
    " There was none."
)
VERSE = """\
    O stay, the sea is wide,
      And wider is the sky;
    The boats go out with every tide,
      And so must I."""


def test_wrapped_lines_become_one() -> None:
    assert split_paragraphs(f"{PROSE}\n\n\n{PROSE}\n") == [JOINED, JOINED]


def test_verse_keeps_its_lines_and_its_indents() -> None:
    verse = "O stay, the sea is wide,\n  And wider is the sky;\nThe boats go out with every tide,\n  And so must I."
    assert split_paragraphs(f"{PROSE}\n\n{VERSE}\n\n{PROSE}") == [JOINED, verse, JOINED]


def test_verse_loses_the_numbers_of_its_lines() -> None:
    assert join_lines(["Of man's first fall        10", "And of the fruit"]) == "Of man's first fall\nAnd of the fruit"


def test_head_and_signature_of_a_letter_stay_apart() -> None:
    letter = f"Harbour Street, May 3\nDear Anna,\n{PROSE}\nAll are well.\nYour brother,\nTom"
    assert split_paragraphs(letter) == [
        f"Harbour Street, May 3\nDear Anna,\n{JOINED} All are well.\nYour brother,\nTom"
    ]


def test_letter_quoted_in_a_narrow_measure_is_joined() -> None:
    lines = ["     We found the captain asleep at last, and Mary", "     Brown, who had the watch, said nothing of it"]
    text = split_paragraphs("\n".join([PROSE, "", *lines, "     to the owners."]))
    assert text[1] == (
        "We found the captain asleep at last, and Mary Brown, who had the watch, said nothing of it to the owners."
    )


def test_centred_lines_lose_their_margin() -> None:
    assert join_lines(["                BY", "          A. N. OTHER"]) == "BY\nA. N. OTHER"


@pytest.mark.parametrize("text", ["x" * 300 + "\n\n“No,” she said.\n\n" + "y" * 200, "Short.\n\nShorter."])
def test_single_line_paragraphs_are_left_alone(text: str) -> None:
    assert "\n\n".join(split_paragraphs(text)) == text


def test_unwrapped_text_keeps_lines_broken_by_hand() -> None:
    text = "word " * 60 + "end\n\nOnce again\nto\nher\n\n" + "word " * 60 + "end"
    assert "\n\n".join(split_paragraphs(text)) == text


def test_paragraphs_without_blank_lines_between_them() -> None:
    lines = [f"{'word ' * 40}end {i}." for i in range(4)] + ["“No.”"]
    assert split_paragraphs("\n".join(lines)) == lines


def test_paragraphs_marked_by_indents_only() -> None:
    paragraph = "   It was late when the carrier came over the hill with his two dogs\n" + (
        "and the lamp, and the dogs were so tired that they lay down in the r\n" * 5
    )
    assert len(split_paragraphs(paragraph * 8)) == 8


@pytest.mark.parametrize(
    "mark", ["***", "* * * * *", "*", "-----", "- - -", "#", "# # #", "———", "⁂", "~~~~", "o0o", "_____"]
)
def test_scene_breaks_are_one_kind(mark: str) -> None:
    assert split_paragraphs(f"He slept.\n\n  {mark}  \n\nHe woke.") == ["He slept.", "* * *", "He woke."]


def test_row_of_stars_needs_no_blank_lines() -> None:
    assert split_paragraphs("He slept.\n   * * *\nHe woke.") == ["He slept.", "* * *", "He woke."]


def test_breaks_that_divide_nothing_go() -> None:
    texts = ["* * *", "a", "* * *", "* * *", "b", "* * *"]
    assert [block.text for block in settle_breaks(map(Block, texts))] == ["a", "* * *", "b"]
    marked = [Block("a"), Block("* * *"), Block("II", 2), Block("* * *"), Block("b")]
    assert [block.text for block in settle_breaks(marked)] == ["a", "II", "b"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("the _Mary Rose_, and _two\nlines_.", "the Mary Rose, and two\nlines."),
        ("(_sic_) “_no_!”", "(sic) “no!”"),
        ("Mr. ____ of snake_case_name", "Mr. ____ of snake_case_name"),
        ("[Softly_._]", "[Softly.]"),
    ],
)
def test_italics_marks_go(text: str, wanted: str) -> None:
    assert clean_paragraph(text) == wanted
