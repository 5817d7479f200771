"""How a verb has a book read: from where it was read to before, with a bar, and so that Ctrl-C loses nothing."""

import time
from dataclasses import dataclass

from rich.console import Console

from epilogue.cli.progress import Watch
from epilogue.cli.shelf import Shelf
from epilogue.engine import Engine, Sequence


@dataclass(kw_only=True)
class Reading:
    """A book as it is read; at every moment true, also after Ctrl-C."""

    engine: Engine
    ids: list[int]
    room_tokens: int = 0
    """That are meant to be written behind it."""
    shelf: Shelf | None = None
    """Where it was kept and is to be kept."""
    num_read: int = 0
    """Tokens that went through the model."""
    read_s: float = 0.0
    sequence: Sequence | None = None

    def run(self, console: Console) -> None:
        """Read, and keep what was read, all of it or up to an interruption.

        Raises:
            CapacityError: it does not fit; said before anything is read.
        """
        self.sequence = self.shelf.open(self.engine, self.ids) if self.shelf else None
        try:
            with Watch(console, "reading", unit="tokens", total=len(self.ids), done=self._done()) as watch:
                self._read(watch)
            if self.shelf is not None:
                self.shelf.tell(self.num_read)
        finally:
            if self.shelf is not None and self.sequence is not None:
                self.shelf.keep(self.engine, self.sequence, self.num_read)

    @property
    def num_known(self) -> int:
        """Tokens that the model has in mind."""
        return self.sequence.table.num_tokens if self.sequence else 0

    def _done(self) -> int:
        return self.shelf.opened.common_tokens if self.shelf and self.shelf.opened else 0

    def _read(self, watch: Watch) -> None:
        start, before = time.perf_counter(), 0

        def on_progress(done: int, total: int) -> None:
            del total
            self.num_read, self.read_s = before + done, time.perf_counter() - start
            watch.update(self.num_known or done, f"{self.num_read / self.read_s:,.0f} tok/s")

        if self.sequence is not None:
            self.engine.revise(self.sequence, self.ids, room_tokens=self.room_tokens, on_progress=on_progress)
            return
        # The first chunk by itself: from then on there is a text, and an interruption leaves it what it has.
        first, rest = self.ids[: self.engine.chunk_tokens], self.ids[self.engine.chunk_tokens :]
        self.sequence = self.engine.open_book(first, room_tokens=len(rest) + self.room_tokens)
        on_progress(len(first), len(first))
        before = len(first)
        if rest:
            self.engine.append(self.sequence, rest, on_progress=on_progress)
