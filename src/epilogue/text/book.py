"""What a book is once it has been read: titles, and the text in the form the models are trained on.

In that form a paragraph is one line and a blank line lies between paragraphs. A single line feed inside a paragraph
occurs only where an author broke the line (verse, the head of a letter). A scene break is the paragraph ``* * *``.
Headings are paragraphs too.
"""

from __future__ import annotations

from dataclasses import dataclass

PARAGRAPH_BREAK = "\n\n"
SCENE_BREAK = "* * *"


@dataclass(frozen=True)
class Chapter:
    """A part of a book under one heading.

    Attributes:
        title: the heading in one line, for lists; empty for what stands before the first heading.
        text: the paragraphs, the heading's among them.
    """

    title: str
    text: str


@dataclass(frozen=True)
class Book:
    """A book as it is handed to a tokenizer.

    Attributes:
        title: from the file's own description, else from a title page of two paragraphs, else its name, else empty.
        author: from the same description or title page, else empty.
        chapters: in reading order; together they are the whole text.
        source: where it came from: a path, ``gutenberg:ID`` or ``-``.
    """

    title: str
    author: str
    chapters: tuple[Chapter, ...]
    source: str

    @property
    def text(self) -> str:
        """The whole text, exactly as the models are trained on it."""
        return PARAGRAPH_BREAK.join(chapter.text for chapter in self.chapters)
