"""Which open sequence begins with the same pages of text: found by a chain of hashes, a page at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from epilogue.engine.sequence import Sequence as Text
from epilogue.kernels.paged_attention import PAGE_TOKENS


class Prefixes:
    """Finds texts to share pages with. Keeps none of them alive."""

    def __init__(self) -> None:
        self._texts: dict[bytes, WeakSet[Text]] = {}
        self._keys: WeakKeyDictionary[Text, list[bytes]] = WeakKeyDictionary()

    def add(self, text: Text) -> None:
        """Let the full pages of a text's table be found; again when it has grown."""
        keys = self._keys.setdefault(text, [])
        known, read = len(keys), text.table.num_tokens // PAGE_TOKENS
        for key in islice(_page_hashes(text.ids, keys), max(0, read - known)):
            # In this order: an interruption may hide a text, but never leave one that ``remove`` does not know of.
            keys.append(key)
            self._texts.setdefault(key, WeakSet()).add(text)
        self._sweep()

    def remove(self, text: Text, *, but_tokens: int = 0) -> None:
        """A closed or cut text is found no more; of a cut one its first tokens' pages are."""
        keys = self._keys.get(text, [])
        while len(keys) > but_tokens // PAGE_TOKENS:
            if texts := self._texts.get(keys[-1]):
                texts.discard(text)
            if not texts:
                self._texts.pop(keys[-1], None)
            keys.pop()

    def _sweep(self) -> None:
        """Drop what forgotten texts have left, when it is most of all."""
        if len(self._texts) > 64 + 2 * sum(map(len, self._keys.values())):
            self._texts = {key: texts for key, texts in self._texts.items() if texts}

    def longest(self, ids: Sequence[int]) -> Iterator[tuple[int, Text]]:
        """(tokens, text) of texts that begin with the same full pages, longest first; never all of ``ids``.

        Of a text only its longest.
        """
        # A text is known by all of its pages, so behind the first that nobody has there is none.
        keys, seen = list(takewhile(self._texts.__contains__, _page_hashes(ids[:-1], []))), set[Text]()
        for num_pages in range(len(keys), 0, -1):
            for text in set(self._texts.get(keys[num_pages - 1], ())) - seen:
                seen.add(text)
                yield num_pages * PAGE_TOKENS, text


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many tokens both begin."""
    length = min(len(one), len(other))
    differs = np.asarray(one[:length], dtype=np.int64) != np.asarray(other[:length], dtype=np.int64)
    return int(differs.argmax()) if differs.any() else length


def _page_hashes(ids: Sequence[int], known: Sequence[bytes]) -> Iterator[bytes]:
    """For every full page behind the known ones, what it and all before it hash to."""
    chain = known[-1] if known else b""
    for stop in range(PAGE_TOKENS * (len(known) + 1), len(ids) + 1, PAGE_TOKENS):
        page = ",".join(map(str, ids[stop - PAGE_TOKENS : stop])).encode()
        chain = hashlib.blake2b(chain + page, digest_size=16).digest()
        yield chain
