"""TEI documents: headings, paragraphs and verse of the body; nothing of header, notes and page marks."""

from pathlib import Path

import pytest

from epilogue.errors import BookError
from epilogue.text import read_book, read_book_bytes

NOVEL = """<?xml version="1.0" encoding="UTF-8"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0">
 <teiHeader><fileDesc><titleStmt><title>The Pier : ELTeC edition</title>
  <author>Sailor, Ann (1840-1901)</author></titleStmt>
  <publicationStmt><p>Not of the work.</p></publicationStmt></fileDesc></teiHeader>
 <text><front><div><p>A preface.</p></div></front>
 <body>
  <div type="chapter"><head>CHAPTER I</head>
   <p>It was <hi>cold</hi>,<pb n="3"/> and the
      rain<note>So in the first edition.</note> fell.</p>
   <lg><l>O sea, O salt,</l><l>O silver sea!</l></lg>
   <milestone unit="section"/>
   <quote><p>Dear sir, come.</p></quote>
  </div>
  <div type="chapter"><head>CHAPTER II</head><p>“Yes,” she said.<lb/>He went.</p></div>
 </body></text>
</TEI>"""


def test_a_novel(tmp_path: Path) -> None:
    (tmp_path / "pier.xml").write_text(NOVEL)
    book = read_book(tmp_path / "pier.xml")
    assert (book.title, book.author) == ("The Pier", "Sailor, Ann")
    assert [chapter.title for chapter in book.chapters] == ["CHAPTER I", "CHAPTER II"]
    assert book.text.split("\n\n") == [
        "CHAPTER I",
        "It was cold, and the rain fell.",
        "O sea, O salt,\nO silver sea!",
        "* * *",
        "Dear sir, come.",
        "CHAPTER II",
        "“Yes,” she said. He went.",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<TEI><text>", "not valid XML"),
        ("<TEI><text/></TEI>", "no TEI document with a body"),
        ("<note><p>Yes.</p></note>", "no TEI document with a body"),
        ('<!DOCTYPE TEI><TEI><!ENTITY a "b"></TEI>', "declares entities"),
    ],
)
def test_what_is_no_novel_is_refused(text: str, said: str) -> None:
    with pytest.raises(BookError, match=said):
        read_book_bytes(text.encode(), "x.xml")
