"""Token ids to text as it settles: whole characters only, and nothing that a stop string may still claim."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from epilogue.text.tokenizer import Tokenizer


class TextStream:
    """Turns the ids of one generated text into text, piece by piece.

    The pieces joined are the decoding of all bytes, invalid ones as U+FFFD, cut before the stop string that is
    complete first (the longest of those that end there). How the text was cut into tokens does not change the result.
    Work is O(1) amortised a byte; what is held back is shorter than the longest stop string.

    Args:
        tokenizer: gives the bytes of an id.
        stop: strings that end the text and are not part of it.
        keeps_stop: the one that ended it is part of it after all.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, keeps_stop: bool = False) -> None:
        if isinstance(stop, str):
            raise ValueError(f"stop must be a sequence of strings, got the string {stop!r}; write [{stop!r}]")
        if not all(stop):
            raise ValueError("a stop string must have at least one character, got an empty one")
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = _StopStrings(stop) if stop else None
        self._keeps_stop = keeps_stop
        self._state = 0
        self._held = ""
        self._stopped = False
        self._finished = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing more will come."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """The text that one more id settles; empty once stopped.

        Raises:
            ValueError: the id is negative, or the stream is finished.
        """
        if self._finished:
            raise ValueError("push() came after finish(); use a new TextStream for another text")
        return self._settle(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """The text still held back, now that no id follows; empty when called again."""
        self._finished = True
        rest = self._settle(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return rest

    def _settle(self, text: str) -> str:
        if self._stopped:
            return ""
        if self._stops is None:
            return text
        for i, character in enumerate(text):
            self._state = self._stops.follow(self._state, character)
            if length := self._stops.matched[self._state]:
                settled = (self._held + text[: i + 1])[: None if self._keeps_stop else -length]
                self._stopped, self._held = True, ""
                return settled
        pending = self._held + text
        cut = len(pending) - self._stops.depth[self._state]
        self._held = pending[cut:]
        return pending[:cut]


class _StopStrings:
    """An Aho-Corasick automaton: a state is the longest end of the text that begins a stop string.

    Aho and Corasick, "Efficient string matching: an aid to bibliographic search", 1975.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.depth = [0]  # characters a state stands for
        self.matched = [0]  # characters of the longest stop string that ends in a state
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the longest proper end of a state that is a state
        for stop in stops:
            self._add(stop)
        self._link()

    def follow(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and character not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(character, 0)

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self.depth.append(self.depth[state] + 1)
                self.matched.append(0)
                self._shorter.append(0)
            state = self._next[state][character]
        self.matched[state] = len(stop)

    def _link(self) -> None:
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for character, child in self._next[state].items():
                self._shorter[child] = self.follow(self._shorter[state], character) if state else 0
                self.matched[child] = self.matched[child] or self.matched[self._shorter[child]]
                queue.append(child)
