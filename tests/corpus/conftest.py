"""Books made of sentences: novels, essays, poems and plays that are alike within a seed and differ between seeds."""

import random
from collections.abc import Callable

import pytest

Write = Callable[..., str]

_NAMES = ("Martha", "Edward", "Jane", "Tom", "Captain Hale", "the old man", "her brother", "the stranger")
_FIRST = (
    "Har",
    "Whit",
    "Ash",
    "Bar",
    "Col",
    "Dray",
    "Ford",
    "Graf",
    "Hol",
    "Kings",
    "Lang",
    "Mor",
    "New",
    "Stan",
    "York",
)
_LAST = ("ley", "ton", "wood", "field", "ford", "worth", "ham", "by", "man", "son", "well", "bury", "den", "low", "row")
_SURNAMES = [one + two for one in _FIRST for two in _LAST]
_PLACES = ("door", "harbour", "kitchen", "garden", "window", "stairs", "church", "road", "fire", "boat", "bridge")
_DID = ("turned to", "ran from", "looked at", "stood by", "came back to", "walked past", "sat down near", "went to")
_WAS = ("dark", "cold", "still", "empty", "far away")
_HOW = ("slowly", "without a word", "in the rain", "with his hat in his hand", "as if she had heard", "that night")
_SAID = ("said", "cried", "whispered", "asked", "answered", "muttered")
_SPEECH = ("I never saw you", "Come here", "You must go", "Is it late", "They took my boat", "Give me your hand")
_TERMS = ("reason", "knowledge", "the state", "experience", "government", "perception", "virtue", "the understanding")
_OF = ("nature", "principle", "extension", "justification", "necessity", "division")
_IS = ("is a condition of", "may be derived from", "must be distinguished from", "has no relation to", "implies")


def _novel(seed: int, words: int = 2500) -> str:
    draw = random.Random(f"novel {seed}")
    paragraphs, count = [], 0
    while count < words:
        told = [
            f"{draw.choice(_NAMES)} {draw.choice(_DID)} the {draw.choice(_SURNAMES)} {draw.choice(_PLACES)} "
            f"{draw.choice(_HOW)}, and the {draw.choice(_PLACES)} by {draw.choice(_SURNAMES)} was "
            f"{draw.choice(_WAS)} {draw.choice(_HOW)}."
            for _ in range(draw.randint(2, 4))
        ]
        speech = f"“{draw.choice(_SPEECH)},” {draw.choice(_SAID)} {draw.choice(_NAMES)} {draw.choice(_HOW)}."
        paragraphs += [" ".join(told), speech]
        count += sum(len(paragraph.split()) for paragraph in paragraphs[-2:])
    return "\n\n".join(paragraphs)


def _essay(seed: int, words: int = 2500) -> str:
    draw = random.Random(f"essay {seed}")
    sentences = [
        f"{draw.choice(_TERMS).capitalize()}, which {draw.choice(_IS)} {draw.choice(_TERMS)}, {draw.choice(_IS)} "
        f"{draw.choice(_TERMS)}; and therefore the {draw.choice(_OF)} of "
        f"{draw.choice(_TERMS)} {draw.choice(_IS)} the {draw.choice(_OF)} of "
        f"{draw.choice(_TERMS)}."
        for _ in range(words // 22)
    ]
    return "\n\n".join(" ".join(sentences[i : i + 6]) for i in range(0, len(sentences), 6))


@pytest.fixture(scope="session")
def novel() -> Write:
    """A story of at least so many words, with speech."""
    return _novel


@pytest.fixture(scope="session")
def essay() -> Write:
    """An argument of about so many words."""
    return _essay
