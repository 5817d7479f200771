"""The language of a book, and of its parts: a book may hold notes, or every second page, in another one."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from epilogue.corpus.extra import require

WINDOW_WORDS = 2000
_SAMPLE_WORDS = 60  # of each window; py3langid is right on 99 % of such samples (benchmarks/results)


@dataclass(frozen=True)
class Languages:
    """What a book is written in.

    Attributes:
        main: ISO 639-1 code of the language that most windows have.
        shares: the share of windows in each language, the most frequent first.
    """

    main: str
    shares: dict[str, float]


def find_languages(text: str) -> Languages:
    """Look at the first 60 words of every 2,000.

    Raises:
        BookError: py3langid is not installed.
    """
    words = text.split()
    windows = [" ".join(words[start : start + _SAMPLE_WORDS]) for start in range(0, max(1, len(words)), WINDOW_WORDS)]
    if len(windows) > 1 and len(words) % WINDOW_WORDS < _SAMPLE_WORDS // 2:
        windows.pop()  # too few words to tell
    counts = Counter(_identifier().classify(window)[0] for window in windows)
    shares = {code: round(count / len(windows), 4) for code, count in sorted(counts.items(), key=lambda x: (-x[1], x))}
    return Languages(next(iter(shares)), shares)


@lru_cache(maxsize=1)
def _identifier() -> Any:
    langid = require("py3langid.langid", purpose="finding a book's language")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
