"""What one call of the command line is tested with and by: a short book, and how the call ended."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from epilogue.cli.progress import Watch

PARAGRAPH = "The wind went round to the north in the night, and nobody could see the end of the pier by morning."
SPEECH = "“No,” said the keeper; “not to-night.”"
BOOK = "\n\n".join(["The Pier", "by A. Sea", "CHAPTER I", PARAGRAPH, SPEECH, PARAGRAPH])


@dataclass(frozen=True)
class Outcome:
    """How one call ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The sentence of a refusal; the assertions hold for every one."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        assert not self.out
        last = self.err.splitlines()[-1]
        assert last.startswith("epilogue: ")
        return last


Run = Callable[..., Outcome]


def interrupt(monkeypatch: pytest.MonkeyPatch, what: str, *, at: int) -> None:
    """Press Ctrl-C when so much of one kind of work is done."""
    real = Watch.update

    def update(self: Watch, done: int, note: str = "") -> None:
        real(self, done, note)
        if self.what == what and done >= at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "update", update)
