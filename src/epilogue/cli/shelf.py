"""Books that were read before: where the verbs find them and where they keep what they read, with a line about each."""

import time
from pathlib import Path

from rich.console import Console

from epilogue.cli.settings import in_words
from epilogue.engine import Engine, Kept, Library, Opened, Sequence
from epilogue.errors import StateError

# Fewer tokens are read again faster than a person notices.
_WORTH_KEEPING = 2048


def library_at(folder: Path | None, limit_gib: float | None) -> Library:
    """The folder and limit that the command line asks for, or the usual ones."""
    return Library(folder, limit_bytes=None if limit_gib is None else int(limit_gib * 2**30))


class Shelf:
    """One book's place in a library.

    Args:
        library: where states are.
        console: for talk.
        title: of the book.
        model: a name for people.
        least_tokens: keep what was read only if it was so many tokens; None never keeps.
    """

    def __init__(
        self, library: Library, console: Console, *, title: str, model: str, least_tokens: int | None = _WORTH_KEEPING
    ) -> None:
        self._library, self._console = library, console
        self._title, self._model, self._least_tokens = title, model, least_tokens
        self.opened: Opened | None = None
        self.kept: Kept | None = None
        self._open_s = 0.0

    def open(self, engine: Engine, ids: list[int]) -> Sequence | None:
        """What was read of a book before; files that are of no use are named and removed."""
        for kept in self._library.clear_unusable():
            self._say(kept.problem)
        start = time.perf_counter()
        while True:
            try:
                self.opened = self._library.open(engine, ids)
                self._open_s = time.perf_counter() - start
                return self.opened.sequence if self.opened else None
            except StateError as error:  # it is gone now
                self._say(str(error))

    def tell(self, num_read: int) -> None:
        """What came of opening."""
        if self.opened is not None and self.opened.kept.header is not None:
            rest = f"read the last {num_read:,} tokens" if num_read else "nothing had to be read"
            on = self.opened.kept.header.read_on
            self._say(f"opened in {self._open_s:.1f} s what was read on {on}; {rest}")

    def keep(self, engine: Engine, sequence: Sequence, num_read: int) -> None:
        """Keep what was read for the next time, if it is worth it; that it cannot be kept is no reason to stop."""
        if self._least_tokens is None or num_read < self._least_tokens:
            return
        try:
            with self._console.status("keeping what was read"):
                self.kept = self._library.keep(
                    engine, sequence, title=self._title, model=self._model, replaces=self.opened
                )
        except StateError as error:
            self._say(f"what was read is not kept: {error}")
            return
        tokens, size = sequence.table.num_tokens, in_words(self.kept.num_bytes)
        self._say(f"kept {tokens:,} tokens for the next time ({size} in {self._library.folder}; `epilogue states`)")

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, style="dim", soft_wrap=True)
