"""Editions of one book, and books inside others, by the words that their sketches share."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epilogue.corpus.shingles import Hashes

SAME_SHARE = 0.7  # of either's five-word runs in the other: the same book in another edition
CONTAINED_SHARE = 0.7  # of the smaller one's: a part of the larger
# A run that more books than these have is a stock phrase, or a licence, and says nothing.
_MOST_HOLDERS = 256


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What the comparison needs of a book.

    Attributes:
        text_hash: of the whole text without regard to case, spacing and punctuation.
        sketch: as ``shingles.sketch`` gives it; uint64, shape (hashes,).
        noise: the share of words that look misread.
        num_chars: length of its text.
    """

    text_hash: str
    sketch: Hashes
    noise: float
    num_chars: int


@dataclass(frozen=True)
class Repeat:
    """A book that another one makes superfluous.

    Attributes:
        kind: "duplicate" (same words), "edition" (nearly) or "contained".
        of: the place of the book that stays.
        share: of its sketch that is in the other one's.
    """

    kind: str
    of: int
    share: float


def find_repeats(books: Sequence[Edition]) -> dict[int, Repeat]:
    """Which books are superfluous, by their place; a book that is named as staying is never superfluous itself.

    Of books that are the same the one with the fewest misread words stays, then the longest, then the first. Then of
    books inside others the larger stays. Memory: the sketches, twice, and a count for every pair that shares a run.
    """
    repeats: dict[int, Repeat] = {}
    order = sorted(range(len(books)), key=lambda i: (round(books[i].noise, 3), -books[i].num_chars, i))
    first: dict[str, int] = {}
    for i in order:
        if (stays := first.setdefault(books[i].text_hash, i)) != i:
            repeats[i] = Repeat("duplicate", stays, 1.0)
    shared = _shared_hashes([np.empty(0, np.uint64) if i in repeats else book.sketch for i, book in enumerate(books)])

    def share(i: int, j: int) -> float:
        return shared[i].get(j, 0) / max(1, len(books[i].sketch))

    for i in order:
        same = [j for j in shared[i] if j not in repeats and min(share(i, j), share(j, i)) >= SAME_SHARE]
        if i not in repeats:
            repeats |= {j: Repeat("edition", i, round(share(j, i), 3)) for j in same}
    for i in sorted(order, key=lambda i: (len(books[i].sketch), -i)):
        larger = [j for j in shared[i] if j not in repeats and _size(books[j], j) > _size(books[i], i)]
        holder = max(larger, key=lambda j: (share(i, j), -j), default=i)
        if i not in repeats and holder != i and share(i, holder) >= CONTAINED_SHARE:
            repeats[i] = Repeat("contained", holder, round(share(i, holder), 3))
    return {i: _settled(i, repeats) for i in sorted(repeats)}


def _size(book: Edition, place: int) -> tuple[int, int]:
    return len(book.sketch), -place


def _settled(place: int, repeats: dict[int, Repeat]) -> Repeat:
    """The repeat with the book that stays in the end: what it repeats may itself be contained in another."""
    repeat, of = repeats[place], repeats[place].of
    while of in repeats:
        of = repeats[of].of
    return Repeat(repeat.kind, of, repeat.share)


def _shared_hashes(sketches: Sequence[Hashes]) -> dict[int, dict[int, int]]:
    """For every book the number of hashes that it shares with each book that it shares any with."""
    owners = np.repeat(np.arange(len(sketches)), [len(sketch) for sketch in sketches])
    hashes = np.concatenate([np.empty(0, np.uint64), *sketches])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(hashes)])
    owners = owners[np.repeat(sizes <= _MOST_HOLDERS, sizes)]
    sizes = sizes[sizes <= _MOST_HOLDERS]
    shared: dict[int, dict[int, int]] = defaultdict(dict)
    for one, two, count in _count_pairs(owners, sizes, len(sketches)):
        shared[one][two] = shared[two][one] = count
    return shared


def _count_pairs(
    owners: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], num_books: int
) -> Iterator[tuple[int, int, int]]:
    """Pairs of neighbours at every distance within the groups, counted; owners are in order within a group."""
    ends = np.repeat(np.cumsum(sizes), sizes)
    places = np.arange(len(owners))
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for distance in range(1, int(sizes.max(initial=1))):
        inside = places[places + distance < ends]
        found, number = np.unique(owners[inside] * num_books + owners[inside + distance], return_counts=True)
        pairs, slots = np.unique(np.concatenate([pairs, found]), return_inverse=True)
        counts = np.bincount(slots, weights=np.concatenate([counts, number]), minlength=len(pairs)).astype(np.int64)
    yield from zip((pairs // num_books).tolist(), (pairs % num_books).tolist(), counts.tolist(), strict=True)
