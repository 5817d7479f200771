import pytest

from epilogue.text.markdown import markdown_blocks, read_front_matter


def texts(text: str) -> list[tuple[int, str]]:
    return [(block.level, block.text) for block in markdown_blocks(text)]


def test_headings_and_paragraphs() -> None:
    source = (
        "# A Novel #\n## Chapter *One*\nIt was\nmorning.\n\nTitle\n=====\nLater\n-----\n\n#### Small\n\n---\n\nEnd."
    )
    assert texts(source) == [
        (1, "A Novel"),
        (2, "Chapter One"),
        (0, "It was morning."),
        (1, "Title"),
        (2, "Later"),
        (0, "Small"),
        (0, "* * *"),
        (0, "End."),
    ]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("*a* **b** ***c*** _d_ __e__ `f` ~~g~~", "a b c d e f g"),
        ("**bold *inner* bold**", "bold inner bold"),
        ("see [the pier](http://x.y/(z) \"t\") and [sea][1] ![boat](b.png)now", "see the pier and sea now"),
        ("<b>x</b> <!-- gone --> &amp; 2 < 3", "x & 2 < 3"),
        (r"\*not\* snake_case_name 5 * 3 * 2", "*not* snake_case_name 5 * 3 * 2"),
        ("> quoted\n> words", "quoted words"),
        ("\\# no heading", "# no heading"),
    ],
)  # fmt: skip
def test_marks_go(source: str, wanted: str) -> None:
    assert [" ".join(text.split(" ")).replace("  ", " ") for _, text in texts(source)] == [wanted]


@pytest.mark.parametrize("mark", ["  ", "\\"])
def test_marked_line_ends_stay(mark: str) -> None:
    assert texts(f"the *sea{mark}\nis* wide{mark}\nand\ndeep") == [(0, "the sea\nis wide\nand deep")]


def test_front_matter() -> None:
    text, fields = read_front_matter('---\ntitle: "Pier"\nauthor: A. Sea\ndate: 1\n---\nIt was.\n')
    assert (text, fields) == ("It was.\n", {"title": "Pier", "author": "A. Sea"})
    assert read_front_matter("---\n\nIt was.") == ("---\n\nIt was.", {})
