"""What quantising costs in bits per byte: nearest rounding, GPTQ, and GPTQ calibrated as the files of 2023 were.

    python -m benchmarks.quantisation --calibration train.jsonl.zst --held-out validation.jsonl.zst

Quantises the bundled model in several ways and measures each on held-out books. "Without bias" calibrates as if every
slope were zero, which is what the tools of 2023 did, and runs the result with its bias. Prints a table and one line of
JSON. The solver's tests run first.
"""

import argparse
import json
import tempfile
import time
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import finish, machine_card, require_green
from epilogue.checkpoint import load_checkpoint, load_config, load_tokenizer
from epilogue.data import iterate_documents
from epilogue.evals import loss_by_position
from epilogue.quant import HeldOut, Job, Method, Scheme, book_samples, quantise_checkpoint

TESTS = ["tests/quant", "tests/kernels/quant_linear"]
BUNDLED = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"
ATTENTION = {"alibi", "alibi_bias_max"}


def without_bias(directory: Path) -> Path:
    """The same weights under a config with neither slopes nor positions."""
    directory.mkdir()
    for path in BUNDLED.iterdir():
        (directory / path.name).symlink_to(path.resolve())
    content = json.loads((BUNDLED / "config.json").read_text())
    content["attn_config"]["alibi"] = content["learned_pos_emb"] = False
    (directory / "config.json").unlink()
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def with_bias(directory: Path) -> None:
    """Give a quantised model the bundled one's bias back."""
    path = directory / "config.json"
    content, bundled = json.loads(path.read_text()), json.loads((BUNDLED / "config.json").read_text())
    content["attn_config"] |= {name: bundled["attn_config"][name] for name in ATTENTION}
    path.write_text(json.dumps(content | {"learned_pos_emb": bundled["learned_pos_emb"]}))


def evaluate(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = load_checkpoint(directory, dtype=torch.float32)
    checkpoint.model.set_epsilon(1e-6)
    tokenizer = load_tokenizer(directory, checkpoint.config)
    texts = (d.text for d in islice(iterate_documents([options.held_out]), options.books))
    sums = loss_by_position(checkpoint.model, tokenizer, texts, context_tokens=options.context)
    return {
        "bits_per_byte": sums.bits_per_byte,
        "num_tokens": sum(sums.num_tokens),
        "by_position": [{"from": row[0], "bits_per_byte": row[3]} for row in sums.buckets()],
    }


def quantise(
    place: Path, method: Method, samples: list[list[int]], options: argparse.Namespace, *, biased: bool
) -> Path:
    source = BUNDLED if biased else without_bias(place.with_name(f"{place.name}-source"))
    scheme = Scheme(bits=options.bits, group_size=options.group_size, has_act_order=options.act_order)
    held_out = HeldOut([samples[0][:64]], 1)  # measured below, on more
    quantise_checkpoint(
        Job(source=source, out=place, scheme=scheme, method=method, calibration=samples, held_out=held_out)
    )
    if not biased:
        with_bias(place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32_768, help="of calibration")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192], help="tokens of a sample")
    parser.add_argument("--books", type=int, default=8)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--act-order", action="store_true")
    options = parser.parse_args()
    require_green(TESTS)
    card = machine_card()
    print(", ".join(f"{name} {value}" for name, value in card.items()))
    print("\n| | bits/byte | against dense | seconds to quantise |\n| --- | ---: | ---: | ---: |", flush=True)
    results = {"dense": evaluate(BUNDLED, options)}
    dense = results["dense"]["bits_per_byte"]
    print(f"| dense | {dense:.4f} | | |", flush=True)
    tokenizer = load_tokenizer(BUNDLED, load_config(BUNDLED))
    variants: list[tuple[str, Method, int, bool]] = [("nearest", "rtn", options.lengths[0], True)]
    for length in options.lengths:
        variants.append((f"GPTQ, samples of {length:,}", "gptq", length, True))
        variants.append((f"GPTQ, samples of {length:,}, without bias", "gptq", length, False))
    with tempfile.TemporaryDirectory() as place:
        for i, (name, method, length, biased) in enumerate(variants):
            texts = (d.text for d in iterate_documents([options.calibration]))
            samples = book_samples(
                tokenizer, texts, num_samples=max(1, options.tokens // length), sequence_tokens=length
            )
            start = time.perf_counter()
            made = quantise(Path(place) / str(i), method, samples, options, biased=biased)
            seconds = time.perf_counter() - start
            results[name] = evaluate(made, options) | {"seconds": seconds}
            bits = results[name]["bits_per_byte"]
            print(f"| {name} | {bits:.4f} | {bits / dense - 1:+.2%} | {seconds:.0f} |", flush=True)
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    finish({"machine": card, "options": told, "results": results})


if __name__ == "__main__":
    main()
