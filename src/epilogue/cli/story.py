"""One story as it is told: the book is read, the continuation written, and the figures of both are kept."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console

from epilogue.cli.progress import Watch
from epilogue.cli.reading import Reading
from epilogue.cli.shelf import Shelf
from epilogue.engine import Engine, SamplingParams, Sequence, stream_text
from epilogue.text import TextStream, Tokenizer


@dataclass(kw_only=True)
class Story:
    """What goes in, and how far it has come; at every moment true, also after Ctrl-C."""

    engine: Engine
    tokenizer: Tokenizer
    ids: list[int]
    """The book, and the opening of what comes next."""
    params: SamplingParams
    stop: tuple[str, ...]

    shelf: Shelf | None = None
    num_written: int = 0
    write_s: float = 0.0
    pieces: list[str] = field(default_factory=list)
    """The text that was written."""
    ended_by: Literal["length", "stop", "end_of_text", "interrupt"] = "length"
    _reading: Reading = field(init=False)

    def __post_init__(self) -> None:
        self._reading = Reading(
            engine=self.engine, ids=self.ids, room_tokens=self.params.max_new_tokens, shelf=self.shelf
        )

    @property
    def num_read(self) -> int:
        """Tokens that went through the model before it wrote."""
        return self._reading.num_read

    @property
    def read_s(self) -> float:
        """How long they took."""
        return self._reading.read_s

    @property
    def num_known(self) -> int:
        """Tokens that the model has in mind, read now or before."""
        return self._reading.num_known

    @property
    def num_opened(self) -> int:
        """Tokens that had been read before, as far as the book is still the same."""
        return max(0, min(self.num_known, len(self.ids)) - self.num_read)

    @property
    def _sequence(self) -> Sequence | None:
        return self._reading.sequence

    @property
    def seed(self) -> int | None:
        """The seed in effect; None if writing has not begun."""
        return self._sequence.seed if self._sequence else None

    def read(self, console: Console) -> None:
        """Have the model read the book.

        Raises:
            CapacityError: it does not fit; said before anything is read.
        """
        self._reading.run(console)

    def write(self, console: Console, *, is_watched: bool) -> Iterator[str]:
        """Have the model write, piece by piece; ``read`` comes first."""
        stream = TextStream(self.tokenizer, self.stop)
        with Watch(console, "writing", unit="tokens", total=self.params.max_new_tokens, is_shown=is_watched) as watch:
            for piece in stream_text(self._tokens(watch), stream):
                self.pieces.append(piece)
                yield piece
        if stream.stopped:
            self.ended_by = "stop"
        elif self.num_written < self.params.max_new_tokens:
            self.ended_by = "end_of_text"

    def _tokens(self, watch: Watch) -> Iterator[int]:
        assert self._sequence is not None
        start = time.perf_counter()
        eos_id, num_tokens = self.tokenizer.eos_id, self.tokenizer.vocab_size
        for token_id in self.engine.stream(self._sequence, self.params, eos_id=eos_id, num_tokens=num_tokens):
            self.num_written, self.write_s = self.num_written + 1, time.perf_counter() - start
            watch.update(self.num_written)
            yield token_id
