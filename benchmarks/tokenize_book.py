"""Tokenising a novel: seconds and megabytes a second, ours beside transformers' fast tokenizer, and the round trip.

    python -m benchmarks.tokenize_book --book novel.txt --tokenizer DIR     # defaults: bundled story and tokenizer

The book is repeated up to 400 KB, the length of a novel. Both run in this process, one after the other, thrice; the
median counts. Ends with one line of JSON.
"""

import argparse
import statistics
import time
import unicodedata
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.harness import finish, machine_card, require_green
from epilogue.text import Tokenizer

BUNDLED = Path(str(files("epilogue"))) / "bundled"
NOVEL_BYTES = 400_000


def median_s(work: Callable[[], Any], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--book", type=Path, default=BUNDLED / "a-life-in-being.txt")
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED / "epilogue-tiny")
    settings = parser.parse_args()
    require_green(["tests/text/test_tokenizer.py", "tests/text/test_neox.py"])

    from transformers import PreTrainedTokenizerFast

    text = settings.book.read_text(encoding="utf-8")
    text *= -(-NOVEL_BYTES // len(text.encode()))
    text = text.encode()[:NOVEL_BYTES].decode(errors="ignore")
    file = settings.tokenizer if settings.tokenizer.is_file() else settings.tokenizer / "tokenizer.json"
    ours, theirs = Tokenizer.from_file(file), PreTrainedTokenizerFast(tokenizer_file=str(file))
    ids = ours.encode(text)
    results = {
        "bytes": len(text.encode()),
        "tokens": len(ids),
        "encode_s": median_s(lambda: ours.encode(text)),
        "transformers_encode_s": median_s(lambda: theirs(text)),
        "decode_s": median_s(lambda: ours.decode(ids)),
        "is_exact": ours.decode(ids) in (text, unicodedata.normalize("NFC", text)),
        "has_same_ids": theirs(text)["input_ids"] == ids,
    }
    for name, value in results.items():
        print(f"{name:>22}  {value:.3f}" if isinstance(value, float) else f"{name:>22}  {value}")
    finish({"benchmark": "tokenize_book", **results, "machine": machine_card()})


if __name__ == "__main__":
    main()
