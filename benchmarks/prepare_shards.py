"""Books to shards: megabytes of text a second and core, by one worker and by two, and whether the bytes are the same.

    python -m benchmarks.prepare_shards --source CORPUS/train-000.jsonl.zst --tokenizer DIR   # default: bundled

Reading, decompressing, encoding, checksums and writing are all in it. Ends with one line of JSON.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from benchmarks.harness import finish, machine_card, require_green
from epilogue.data import prepare_shards
from epilogue.text import Tokenizer

BUNDLED = Path(str(files("epilogue"))) / "bundled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, nargs="+", default=[BUNDLED / "a-life-in-being.txt"])
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED / "epilogue-tiny")
    settings = parser.parse_args()
    require_green(["tests/data/test_shards.py", "tests/data/test_writing.py"])
    tokenizer = Tokenizer.from_file(settings.tokenizer)
    results: dict[str, object] = {}
    manifests = []
    with tempfile.TemporaryDirectory() as place:
        for workers in (1, 2):
            start_s, before = time.perf_counter(), os.times()
            shards = prepare_shards(
                settings.source, Path(place) / str(workers), tokenizer=tokenizer, num_workers=workers
            )
            wall_s, after = time.perf_counter() - start_s, os.times()
            cpu_s = sum(after[:4]) - sum(before[:4])
            text_mb = sum(document.num_bytes for document in shards.documents) / 1e6
            results[f"workers_{workers}"] = {
                "wall_s": round(wall_s, 1),
                "cpu_s": round(cpu_s, 1),
                "mb_per_s": round(text_mb / wall_s, 2),
                "mb_per_cpu_s": round(text_mb / cpu_s, 2),
            }
            manifests.append(json.loads((shards.folder / "manifest.json").read_text()))
        results |= {"books": len(shards.documents), "tokens": shards.num_tokens, "text_mb": round(text_mb, 1)}
    results["has_same_bytes"] = manifests[0] == manifests[1]  # with the SHA-256 of every file
    for name, value in results.items():
        print(f"{name:>16}  {value}")
    finish({"benchmark": "prepare_shards", **results, "machine": machine_card()})


if __name__ == "__main__":
    main()
