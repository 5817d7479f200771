"""Trains the classifier of fiction and says how often it is right on books it has not seen.

    python recipes/train_fiction.py CORPUS --raw CORPUS/raw-samples [--write]

CORPUS holds .jsonl.zst files of English novels (all are fiction, so their passages are the positive examples). What is
no fiction comes from the same files: prefaces and introductions that stand before the novels, some ninety pieces. No
labelled sample is trained on: the files of --raw with their labels.csv only measure, and every novel by one of their
authors is left out of the training, as are all of validation.jsonl.zst.

The bias is set so that 98 % of the training novels, each judged by a model that has not seen it (five folds by book),
count as fiction. Prints one JSON line last.
"""

import argparse
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from epilogue.corpus.fiction import WEIGHTS, FictionClassifier
from epilogue.corpus.genre import MOST_DRAMA, MOST_VERSE, drama_share, verse_share
from epilogue.corpus.json_lines import read_json_lines
from epilogue.corpus.language import find_languages
from epilogue.corpus.style import Features, ngram_features, passages, style_features
from epilogue.text import read_book

WANTED_RECALL = 0.98
NUM_FOLDS = 5
PASSAGES_A_NOVEL = 6
WEIGHT_DECAY = 0.01
NGRAM_SCALE = 8.0  # word features of unit length are small beside standardised ones
PREFACE_CHARS = (1_500, 25_000)

_HEADING = re.compile(
    r"^(?:the\s+|author[’']?s\s+|translator[’']?s\s+|editor[’']?s\s+|general\s+)*"
    r"(?:preface|introduction|introductory note|foreword|biographical (?:note|sketch)|to the reader"
    r"|advertisement)\b[^a-z]{0,60}$",
    re.I,
)
_NEXT_HEADING = re.compile(
    r"^(?:(?i:chapter|book|part|volume|letter|canto|stave)\b|[IVXL]+\.?$|\d+\.?$|[A-Z][A-Z .,'’\"“”:;!?-]{2,70}$)"
)


@dataclass(frozen=True)
class Example:
    """Features of a piece's passages, and the book it is from."""

    name: str
    book: str
    is_fiction: bool
    style: Features
    ngrams: Features


def example(text: str, *, name: str, book: str, is_fiction: bool, most: int | None = None) -> Example:
    """The features of at most ``most`` passages, evenly spread."""
    found = passages(text)
    if most is not None and len(found) > most:
        found = [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]
    style = np.stack([style_features(passage) for passage in found])
    return Example(name, book, is_fiction, style, np.stack([ngram_features(passage) for passage in found]))


def preface(text: str) -> str:
    """The preface or introduction that a novel's text begins with; empty if there is none of a fitting length."""
    paragraphs = text.split("\n\n")
    for start, paragraph in enumerate(paragraphs[: max(6, len(paragraphs) // 30)]):
        if len(paragraph) < 80 and _HEADING.match(paragraph.strip()):
            body = paragraphs[start + 1 :]
            end = next((i for i, p in enumerate(body) if i and len(p) < 100 and _NEXT_HEADING.match(p)), len(body))
            found = "\n\n".join(body[:end])
            return found if PREFACE_CHARS[0] < len(found) < PREFACE_CHARS[1] else ""
    return ""


def novel_examples(files: Iterable[Path], without_authors: set[str]) -> Iterator[Example]:
    """Novels, and the prefaces before them."""
    for file in files:
        for _, fields in read_json_lines(file):
            if surname(fields["author"]) not in without_authors:
                book = fields["id"]
                yield example(fields["text"], name=book, book=book, is_fiction=True, most=PASSAGES_A_NOVEL)
                if found := preface(fields["text"]):
                    yield example(found, name=f"{book} (preface)", book=book, is_fiction=False)


def surname(author: str) -> str:
    """The last word of a name, in small letters."""
    return author.split()[-1].lower() if author.split() else ""


def fit(examples: Sequence[Example]) -> FictionClassifier:
    """Logistic regression; every piece counts the same whatever its length, and both kinds the same in all."""
    style = np.concatenate([e.style for e in examples])
    mean, scale = style.mean(0), style.std(0) + 1e-3
    blank = FictionClassifier(mean, scale, np.zeros_like(mean), np.zeros(1, np.float32), 0.0)
    style_TF = torch.from_numpy(blank.standardise(style))
    ngrams_TF = torch.from_numpy(np.concatenate([e.ngrams for e in examples])) * NGRAM_SCALE
    labels_T = torch.cat([torch.full((len(e.style),), float(e.is_fiction)) for e in examples])
    weights_T = torch.cat([torch.full((len(e.style),), 1 / len(e.style)) for e in examples])
    for label in (0.0, 1.0):
        weights_T[labels_T == label] *= 0.5 / weights_T[labels_T == label].sum()
    parameters = [torch.zeros(style_TF.shape[1]), torch.zeros(ngrams_TF.shape[1]), torch.zeros(())]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores_T = style_TF @ parameters[0] + ngrams_TF @ parameters[1] + parameters[2]
        losses_T = torch.nn.functional.binary_cross_entropy_with_logits(scores_T, labels_T, reduction="none")
        loss = (weights_T * losses_T).sum() + WEIGHT_DECAY * sum(p.square().sum() for p in parameters[:2])
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    style_weight, ngram_weight, bias = (parameter.detach().numpy() for parameter in parameters)
    return FictionClassifier(mean, scale, style_weight, ngram_weight * NGRAM_SCALE, float(bias))


def score(classifier: FictionClassifier, one: Example) -> float:
    """The mean over its passages."""
    pairs = zip(one.style, one.ngrams, strict=True)
    return float(np.mean([classifier.score_passage(style, ngrams) for style, ngrams in pairs]))


def cross_validate(examples: Sequence[Example]) -> dict[str, float]:
    """Every piece's score by a model that has seen nothing of its book."""
    books = sorted({e.book for e in examples})
    fold = dict(zip(books, np.random.default_rng(0).permutation(len(books)) % NUM_FOLDS, strict=True))
    scores: dict[str, float] = {}
    for held_out in range(NUM_FOLDS):
        classifier = fit([e for e in examples if fold[e.book] != held_out])
        scores |= {e.name: score(classifier, e) for e in examples if fold[e.book] == held_out}
    return scores


def with_threshold(classifier: FictionClassifier, scores: Sequence[float]) -> FictionClassifier:
    """The classifier with its zero where the wanted share of these novels' scores lies above."""
    zero = float(np.quantile(scores, 1 - WANTED_RECALL))
    print(f"zero at {zero:.3f}")
    return FictionClassifier(
        classifier.style_mean,
        classifier.style_scale,
        classifier.style_weight,
        classifier.ngram_weight,
        classifier.bias - zero,
    )


def judge_raw(folder: Path, classifier: FictionClassifier) -> list[dict[str, object]]:
    """What the whole decision (language, verse, play, classifier) says of every labelled sample."""
    results: list[dict[str, object]] = []
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as labels:
        for row in csv.DictReader(labels):
            text = read_book(folder / row["file"]).text
            languages = find_languages(text)
            verse, drama, fiction = verse_share(text), drama_share(text), classifier.score(text)
            results.append(
                {
                    "file": row["file"],
                    "kind": row["kind"],
                    "labels": [row["fiction"], row["language"]],
                    "language": languages.main,
                    "language_share": languages.shares[languages.main],
                    "verse": round(verse, 3),
                    "drama": round(drama, 3),
                    "score": round(fiction, 2),
                    "fiction": "no" if verse > MOST_VERSE or drama > MOST_DRAMA or fiction <= 0 else "yes",
                }
            )
    return results


def figures(raw: list[dict[str, object]], *, language: str | None) -> dict[str, object]:
    """Precision and recall of fiction over the samples of one language, or all."""
    rows = [row for row in raw if language is None or row["labels"][1] == language]  # type: ignore[index]
    pairs = [(row["labels"][0] == "yes", row["fiction"] == "yes") for row in rows]  # type: ignore[index]
    hits = sum(label and said for label, said in pairs)
    return {
        "samples": len(rows),
        "precision": round(hits / max(1, sum(said for _, said in pairs)), 3),
        "recall": round(hits / max(1, sum(label for label, _ in pairs)), 3),
    }


def main() -> None:
    """Train, measure, and with --write put the weights into the package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder of .jsonl.zst files of novels, and index.csv")
    parser.add_argument("--raw", type=Path, required=True, help="folder of labelled books with labels.csv")
    parser.add_argument("--write", action="store_true", help="replace the weights of the package")
    args = parser.parse_args()
    with (args.raw / "labels.csv").open(encoding="utf-8", newline="") as labels:
        judged_authors = {surname(row["author"]) for row in csv.DictReader(labels)}
    validation = args.corpus / "validation.jsonl.zst"
    files = sorted(file for file in args.corpus.glob("*.jsonl.zst") if file != validation)
    examples = list(novel_examples(files, judged_authors))
    scores = cross_validate(examples)
    novels = [scores[e.name] for e in examples if e.is_fiction]
    classifier = with_threshold(fit(examples), novels)
    zero = float(np.quantile(novels, 1 - WANTED_RECALL))
    prefaces = [scores[e.name] for e in examples if not e.is_fiction]
    held_out = [score(classifier, e) for e in novel_examples([validation], set()) if e.is_fiction]
    raw = judge_raw(args.raw, classifier)
    for row in raw:
        print(json.dumps(row, ensure_ascii=False))
    if args.write:
        classifier.save(WEIGHTS)
    report = {
        "trained_on": {"novels": len(novels), "prefaces": len(prefaces)},
        "folds": {
            "novels_as_fiction": round(float(np.mean(np.array(novels) > zero)), 4),
            "prefaces_as_other": round(float(np.mean(np.array(prefaces) <= zero)), 4),
        },
        "validation_novels": {"books": len(held_out), "as_fiction": sum(s > 0 for s in held_out)},
        "raw_english": figures(raw, language="en"),
        "raw_all": figures(raw, language=None),
        "raw_language_right": sum(row["language"] == row["labels"][1] for row in raw),  # type: ignore[index]
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
