"""What became of every book: counts, distributions, and the reason for each that was dropped."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

_SAMPLES = 5  # of each reason, with their first words
_WORDS_PER_OCTAVE = 2  # bins of a doubling of length
_SCORE_STEP = 0.5
KEPT = "kept"


class Report:
    """Takes records of books in order and sums them up. Memory: a line for every dropped book."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._characters = 0
        self._bins: dict[str, dict[str, Counter[float]]] = {
            name: {"kept": Counter(), "dropped": Counter()} for name in ("words", "decade", "fiction_score")
        }
        self._languages: Counter[str] = Counter()
        self._dropped: list[dict[str, Any]] = []
        self._samples: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count one book."""
        reason = record["dropped"] or KEPT
        self._reasons[reason] += 1
        measures = record["measures"]
        if "language" in measures:
            self._languages[measures["language"]] += 1
        side = "dropped" if record["dropped"] else "kept"
        if words := measures.get("words"):
            octave = math.floor(math.log2(words) * _WORDS_PER_OCTAVE) / _WORDS_PER_OCTAVE
            self._bins["words"][side][round(2**octave)] += 1
        if record["year"]:
            self._bins["decade"][side][record["year"] // 10 * 10] += 1
        if (score := measures.get("fiction_score")) is not None:
            self._bins["fiction_score"][side][math.floor(score / _SCORE_STEP) * _SCORE_STEP] += 1
        if not record["dropped"]:
            self._characters += record["chars"]
            return
        line = {name: record[name] for name in ("id", "title", "author", "source")}
        self._dropped.append(line | {"reason": reason, "why": record["why"]})
        if len(self._samples[reason]) < _SAMPLES:
            self._samples[reason].append(line | {"why": record["why"], "excerpt": record["excerpt"]})

    def summary(self) -> dict[str, Any]:
        """All of it, for JSON; the same for the same books in the same order."""
        return {
            "books": sum(self._reasons.values()),
            "kept": self._reasons[KEPT],
            "kept_characters": self._characters,
            "dropped_by_reason": {name: n for name, n in self._reasons.most_common() if name != KEPT},
            "languages": dict(self._languages.most_common()),
            "words": self._histogram("words"),
            "decades": self._histogram("decade"),
            "fiction_scores": self._histogram("fiction_score"),
            "samples": dict(self._samples),
            "dropped": self._dropped,
        }

    def _histogram(self, name: str) -> list[dict[str, float]]:
        """Bins in order, with where each begins."""
        kept, dropped = self._bins[name]["kept"], self._bins[name]["dropped"]
        return [{"from": start, "kept": kept[start], "dropped": dropped[start]} for start in sorted({*kept, *dropped})]
