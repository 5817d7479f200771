"""Words of a book as numbers, and runs of words as numbers: what duplicates and contamination are found by."""

import re

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]

# One hash in so many is kept in a sketch: 400 for a novel of 100,000 words.
SKETCH_SCALE = 256
SKETCH_WORDS = 5

_WORD = re.compile(r"[^\W_]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class _WordHashes(dict[str, int]):
    """Hashes of words, each computed once."""

    def __missing__(self, word: str) -> int:
        self[word] = found = xxhash.xxh3_64_intdigest(word.encode(errors="replace"))
        return found


def word_hashes(text: str) -> Hashes:
    """One number for each word, without regard to case, punctuation and spacing; shape (words,).

    An apostrophe divides a word, so that straight and curly ones, which editions differ in, make no difference.
    """
    words = _WORD.findall(text.casefold())
    return np.fromiter(map(_WordHashes().__getitem__, words), dtype=np.uint64, count=len(words))


def shingle_hashes(words: Hashes, num_words: int) -> Hashes:
    """One number for each run of ``num_words`` words, in order; shape (words - num_words + 1,), or empty.

    A polynomial of the words' hashes modulo 2^64, then splitmix64's finaliser, so that all bits depend on all words.
    """
    count = max(0, len(words) - num_words + 1)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(num_words):
        mixed = mixed * _ODD + words[offset : offset + count]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIXERS[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIXERS[1]
    return mixed ^ (mixed >> np.uint64(31))


def sketch(words: Hashes) -> Hashes:
    """The distinct hashes of a book's five-word runs that lie in the lowest 1/256 of all numbers, sorted.

    This is MinHash with a threshold in place of a number (FracMinHash: Irber and others, sourmash): the share of one
    book's sketch that is in another's estimates the share of the one book that is in the other, whatever their sizes,
    with a standard error of sqrt(c(1-c)/hashes). So one sketch finds both editions and contained works.
    """
    hashes = shingle_hashes(words, SKETCH_WORDS)
    return np.unique(hashes[hashes < np.uint64((1 << 64) // SKETCH_SCALE)])
