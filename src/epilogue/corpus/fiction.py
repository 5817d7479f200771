"""How much a book reads like fiction: a linear classifier on style and hashed words, a passage at a time.

`recipes/train_fiction.py` makes the weights, which lie beside this file (18 kB); benchmarks/results says what they were
trained on and how often they are right. They know English prose only: verse, plays and other languages are told apart
before (`genre`, `language`).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from epilogue.corpus.style import Features, ngram_features, passages, style_features

WEIGHTS = Path(__file__).with_name("fiction.safetensors")
_FARTHEST = 4.0  # standard deviations beyond which a style feature counts no more


@dataclass(frozen=True)
class FictionClassifier:
    """Weights of a logistic regression.

    Attributes:
        style_mean: of the training passages; float32, shape (NUM_STYLE,), like the next two.
        style_scale: their standard deviations.
        style_weight: for standardised features.
        ngram_weight: float32, shape (NUM_BUCKETS,).
        bias: added to every passage's score.
    """

    style_mean: Features
    style_scale: Features
    style_weight: Features
    ngram_weight: Features
    bias: float

    def score(self, text: str) -> float:
        """The mean log odds of fiction over a book's passages: above 0 is fiction."""
        scores = [self.score_passage(style_features(passage), ngram_features(passage)) for passage in passages(text)]
        return float(np.mean(scores))

    def score_passage(self, style: Features, ngrams: Features) -> float:
        """The log odds of one passage from its features."""
        return float(self.standardise(style) @ self.style_weight + ngrams @ self.ngram_weight) + self.bias

    def standardise(self, style: Features) -> Features:
        """Style features in standard deviations from the mean, clipped."""
        standard: Features = np.clip((style - self.style_mean) / self.style_scale, -_FARTHEST, _FARTHEST)
        return standard

    def save(self, path: Path) -> None:
        """Write as safetensors, word weights in half precision."""
        save_file(
            {
                "style_mean": self.style_mean,
                "style_scale": self.style_scale,
                "style_weight": self.style_weight,
                "ngram_weight": self.ngram_weight.astype(np.float16),
                "bias": np.array([self.bias], dtype=np.float32),
            },
            path,
        )

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "FictionClassifier":
        """Read what ``save`` wrote."""
        arrays = load_file(path)
        bias = float(arrays.pop("bias")[0])
        return cls(bias=bias, **{name: array.astype(np.float32) for name, array in arrays.items()})


@lru_cache(maxsize=1)
def bundled_classifier() -> FictionClassifier:
    """The classifier that comes with the package."""
    return FictionClassifier.load()
