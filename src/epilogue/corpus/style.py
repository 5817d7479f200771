"""What distinguishes a told story from an argument, counted on passages of a book.

The features follow corpus linguistics' dimensions of narrative against exposition (Biber, *Variation across Speech and
Writing*, 1988): past tense and third persons, speech and its verbs, against present tense, nominalisations and
connectives; and Underwood's finding (*Distant Horizons*, 2019) that words for body, sight and place mark fiction.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import xxhash

Features = npt.NDArray[np.float32]

NUM_BUCKETS = 1 << 13
PASSAGE_WORDS = 1000
MOST_PASSAGES = 16

_WORD_SETS: tuple[tuple[str, str], ...] = (
    ("speech verbs", "said asked cried replied answered exclaimed whispered murmured shouted muttered remarked"),
    ("third persons", "he she him her his hers himself herself"),
    ("first person", "i me my mine myself"),
    ("second person", "you your yours thou thee thy"),
    ("first persons", "we us our ours ourselves"),
    ("past auxiliaries", "was were had did"),
    ("present auxiliaries", "is are has have do does am be"),
    ("modals", "may must can cannot should shall ought"),
    ("connectives", "which whom whose thus therefore however hence moreover although whether such upon"),
    ("of and the", "of the in by"),
    ("body and place", "eyes eye hand hands face head voice door room window looked turned went came stood sat"),
    ("contracted", "don didn won couldn wouldn ll ve isn wasn"),
    ("time of telling", "then when suddenly again moment last night morning evening"),
)
_NOMINAL = re.compile(r"[a-z]{3,}(?:tion|sion|ness|ity|ment|ism|ance|ence)s?")
_WORD = re.compile(r"[^\W_]+")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")
_SENTENCE_END = re.compile(r"[.!?]+")
_SPEECH_START = re.compile(r"[\"“‘'—]")
_MEMBERS = tuple(frozenset(words.split()) for _, words in _WORD_SETS)
NUM_STYLE = len(_WORD_SETS) + 14


def passages(text: str) -> list[str]:
    """At most 16 passages of whole paragraphs, about 1,000 words each, spread over the book.

    What is before the first and behind the last passage of a long book is front matter more often than not, and left
    out.
    """
    found, start, count = [], 0, 0
    paragraphs = text.split("\n\n")
    for end, paragraph in enumerate(paragraphs, start=1):
        count += paragraph.count(" ") + 1
        if count >= PASSAGE_WORDS:
            found.append((start, end))
            start, count = end, 0
    if not found:
        return [text]
    if len(found) > MOST_PASSAGES:
        found = found[1:-1]
    chosen = {round(i * (len(found) - 1) / max(1, MOST_PASSAGES - 1)) for i in range(MOST_PASSAGES)}
    return ["\n\n".join(paragraphs[slice(*found[i])]) for i in sorted(chosen) if i < len(found)]


def style_features(passage: str) -> Features:
    """Rates and means of one passage; float32, shape (NUM_STYLE,)."""
    words = _WORD.findall(passage.lower())
    num_words = max(1, len(words))
    counts = Counter(words)
    rates = [1000 * sum(counts[word] for word in members) / num_words for members in _MEMBERS]
    paragraphs = passage.split("\n\n")
    num_sentences = max(1, len(_SENTENCE_END.findall(passage)))
    quotes = sum(map(passage.count, '"“”'))
    per_thousand = {
        "quotation marks": quotes,
        "ed": sum(n for word, n in counts.items() if len(word) > 3 and word.endswith("ed")),
        "nominal": sum(n for word, n in counts.items() if _NOMINAL.fullmatch(word)),
        "digits": sum(n for word, n in counts.items() if word[0].isdigit()),
        "names": len(_NAME.findall(passage)),
        "semicolons": passage.count(";") + passage.count(":"),
        "brackets": sum(map(passage.count, "([")),
        "broken lines": sum(paragraph.count("\n") for paragraph in paragraphs),
    }
    rates += [1000 * value / num_words for value in per_thousand.values()]
    rates += [
        100 * sum(_SPEECH_START.match(paragraph) is not None for paragraph in paragraphs) / len(paragraphs),
        100 * sum(map(passage.count, "!?")) / num_sentences,
        10 * math.log(num_words / num_sentences),
        10 * math.log(num_words / len(paragraphs)),
        10 * sum(map(len, words)) / num_words,
        100 * len(counts) / num_words,
    ]
    return np.asarray(rates, dtype=np.float32)


def ngram_features(passage: str) -> Features:
    """Hashed words and pairs of words, log counts of unit length; float32, shape (NUM_BUCKETS,).

    Names and numbers are left out: they tell books apart, not kinds of books.
    """
    words = [word for word in _WORD.findall(_NAME.sub("", passage).lower()) if word.isalpha()]
    buckets = _buckets(words) + _buckets([f"{one} {two}" for one, two in pairwise(words)])
    counts = np.bincount(np.asarray(buckets, dtype=np.int64), minlength=NUM_BUCKETS).astype(np.float32)
    features: Features = np.log1p(counts)
    return (features / max(float(np.linalg.norm(features)), 1e-6)).astype(np.float32)


def _buckets(terms: Sequence[str]) -> list[int]:
    return [xxhash.xxh32_intdigest(term.encode()) % NUM_BUCKETS for term in terms]
