"""Phrases that must not be written: found in the tokens of a growing text before anybody has seen them."""

from collections.abc import Sequence

from epilogue.text.tokenizer import Tokenizer


class PhraseGuard:
    """Holds tokens back for as long as a banned phrase could still begin in them. Case does not matter.

    Args:
        tokenizer: gives the bytes of an id.
        phrases: none of them empty.

    Raises:
        ValueError: a phrase is empty.
    """

    def __init__(self, tokenizer: Tokenizer, phrases: Sequence[str]) -> None:
        if not all(phrases):
            raise ValueError("a banned phrase must have at least one character, got an empty one")
        self._tokenizer = tokenizer
        self._phrases = [phrase.lower() for phrase in phrases]
        # In another case a character may take other bytes, but never more than four.
        self._longest_bytes = max((4 * len(phrase) for phrase in self._phrases), default=0)
        self._held: list[int] = []

    def push(self, token_id: int) -> int:
        """Take one more token in; how many of the last ones to take back, because a phrase is complete in them.

        Those are forgotten here; the first of them began the phrase and must not be chosen there again.
        """
        self._held.append(token_id)
        starts = self._starts()
        place = self._find(b"".join(map(self._tokenizer.token_bytes, self._held)))
        if place is None:
            return 0
        first = max(i for i, start in enumerate(starts) if start <= place)
        count = len(self._held) - first
        del self._held[first:]
        return count

    def release(self) -> list[int]:
        """Tokens that no phrase can begin in any more, each told once."""
        starts = self._starts()
        count = sum(starts[-1] - end > self._longest_bytes for end in starts[1:])
        released = self._held[:count]
        del self._held[:count]
        return released

    def finish(self) -> list[int]:
        """All that is held, now that nothing follows."""
        rest, self._held = self._held, []
        return rest

    def _starts(self) -> list[int]:
        """The byte each held token starts at, and the end."""
        starts = [0]
        for token_id in self._held:
            starts.append(starts[-1] + len(self._tokenizer.token_bytes(token_id)))
        return starts

    def _find(self, held: bytes) -> int | None:
        """The byte at which the first phrase begins."""
        text = held.decode(errors="surrogateescape")
        lowered, places = "", list[int]()
        for place, character in enumerate(text):
            lowered += character.lower()
            places.extend([place] * len(character.lower()))
        found = [places[at] for phrase in self._phrases if (at := lowered.find(phrase)) >= 0]
        return len(text[: min(found)].encode(errors="surrogateescape")) if found else None
