"""Standard output as a page: prose that breaks between words on a terminal, and exactly as it comes elsewhere."""

import shutil
import sys

from rich.cells import cell_len

# A terminal obeys control characters; a small model may write any of them.
_CONTROLS = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)], "\ufffd")


class Page:
    """Shows a text piece by piece on standard output.

    On a terminal, a word waits until it is complete, to be put on the line where it fits; control characters are not
    passed on. Where output goes to a file or another program, pieces pass unchanged and at once.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._column = 0
        self._space = ""
        self._word = ""
        self._last = "\n"

    def write(self, piece: str) -> None:
        """Show some more text."""
        if not self.is_terminal:
            self._emit(piece)
            return
        shown = ""
        for character in piece.translate(_CONTROLS):
            if not character.isspace():
                self._word += character
                continue
            shown += self._settled()
            if character == "\n":
                shown, self._space, self._column = shown + "\n", "", 0
            else:
                self._space += character
        self._emit(shown)

    def close(self) -> None:
        """Show what still waits, and end the last line."""
        self._emit(self._settled())
        if self._last != "\n":
            self._emit("\n")

    def _settled(self) -> str:
        """The word that waited, behind its space or on a new line."""
        if not self._word:
            return ""
        space, word = self._space.expandtabs(4), self._word
        self._space = self._word = ""
        if self._column and self._column + len(space) + cell_len(word) > shutil.get_terminal_size().columns:
            self._column, space = 0, "\n"
        self._column += cell_len(word) + (0 if space == "\n" else len(space))
        return space + word

    def _emit(self, text: str) -> None:
        if text:
            self._last = text[-1]
            print(text, end="", flush=True)
