"""Whether a text is a book and a sound one: the rules of Gopher (Rae and others, 2021, appendix A), for whole books.

What Gopher counts a document is counted here a book, so the limits on repetition are tighter (a novel that repeats a
fifth of its ten-word runs is printed twice), and the limits on length and stop words are a book's.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from epilogue.corpus.shingles import Hashes, shingle_hashes

MOST_WORDS = 2_000_000
_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_LETTER = re.compile(r"[^\W\d_]")
# A digit or a strange mark inside a word: what character recognition makes of dirt (but 1st, 2nd, 30s, 5th, 1/2d).
_NOISE = re.compile(r"[a-z][0-9]|[0-9][b-gi-mo-qu-z]|[|\\^~<>{}\ufffd]")
_LONG_PARAGRAPH = 80  # characters; shorter ones ("Yes.") repeat in every book
_REPEATED_RUN = 10  # words

# measure: (least, most), and what it is called in the report.
LIMITS: dict[str, tuple[float, float, str]] = {
    "mean_word_length": (3.0, 10.0, "characters a word"),
    "lettered_share": (0.8, 1.0, "of the words have a letter"),
    "symbols_per_word": (0.0, 0.1, "hash marks and ellipses a word"),
    "stop_word_share": (0.08, 1.0, "of the words are the commonest of English"),
    "digit_share": (0.0, 0.05, "of the words are numbers"),
    "repeated_paragraphs": (0.0, 0.2, "of the text is paragraphs that stood before"),
    "repeated_runs": (0.0, 0.2, "of its ten-word runs stood before"),
    "noise_share": (0.0, 0.02, "of the words look misread"),
}
_ENGLISH_ONLY = "stop_word_share"


def measure_quality(text: str, words: Hashes) -> dict[str, float]:
    """The shares that ``LIMITS`` are about; ``words`` are the text's word hashes."""
    counts = Counter(text.split())
    count = max(1, counts.total())
    paragraphs = [paragraph for paragraph in text.split("\n\n") if len(paragraph) >= _LONG_PARAGRAPH]
    repeated = sum(map(len, paragraphs)) - sum(map(len, set(paragraphs)))
    runs = np.sort(shingle_hashes(words, _REPEATED_RUN))  # three times as fast as np.unique
    measures = {
        "mean_word_length": sum(len(word) * n for word, n in counts.items()) / count,
        "lettered_share": sum(n for word, n in counts.items() if _LETTER.search(word)) / count,
        "symbols_per_word": (text.count("#") + text.count("...") + text.count("…")) / count,
        "stop_word_share": sum(counts[word] + counts[word.title()] for word in _STOP_WORDS) / count,
        "digit_share": sum(n for word, n in counts.items() if word[0].isdigit()) / count,
        "repeated_paragraphs": repeated / max(1, len(text)),
        "repeated_runs": np.count_nonzero(runs[1:] == runs[:-1]) / max(1, len(runs)),
        "noise_share": sum(n for word, n in counts.items() if _NOISE.search(word)) / count,
    }
    return {name: round(value, 4) for name, value in measures.items()}


def quality_faults(measures: dict[str, float], *, is_english: bool) -> Iterator[str]:
    """A clause for every limit that the measures break."""
    for name, (least, most, meaning) in LIMITS.items():
        value = measures[name]
        if not least <= value <= most and (is_english or name != _ENGLISH_ONLY):
            limit = f"at least {least:g}" if value < least else f"at most {most:g}"
            yield f"{value:g} {meaning}, wanted {limit}"
