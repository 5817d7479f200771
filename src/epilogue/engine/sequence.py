"""Sequence: one growing text and everything that is known about it."""

from collections.abc import Iterable

from torch import Tensor

from epilogue.engine.sampling import Sampler
from epilogue.model import KVCache


class Sequence:
    """A text, its keys and values, and what the model expects next.

    Made by ``Engine.read`` and grown by the engine alone. At every moment, also after an interruption:

    - ``ids`` is the whole text, read and written;
    - ``cache`` holds its first ``cache.length`` tokens, and the rest, ``num_pending``, go through the model before
      the next token is chosen;
    - ``logits_V`` is what the model expects after the last token, or None while that is not known.
    """

    def __init__(self, ids: Iterable[int], cache: KVCache) -> None:
        self.ids = list(ids)
        self.cache = cache
        self.logits_V: Tensor | None = None
        self.sampler: Sampler | None = None
        """Of the last ``Engine.write``: tells the seed in effect. None makes the next write start its seed anew."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the text."""
        return len(self.ids)

    @property
    def num_pending(self) -> int:
        """Tokens that the model has not seen yet."""
        return self.num_tokens - self.cache.length

    @property
    def capacity_tokens(self) -> int:
        """Tokens the text can grow to."""
        return self.cache.capacity_tokens

    @property
    def room_tokens(self) -> int:
        """Tokens that can still be added."""
        return self.capacity_tokens - self.num_tokens

    def append(self, ids: Iterable[int]) -> None:
        """Add tokens for the engine to see to; there must be room. What was expected next is forgotten."""
        self.logits_V = None
        self.ids.extend(ids)
