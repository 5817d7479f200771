"""What quantising 7 billion parameters asks of a machine: whole blocks of that shape, by GPTQ, from disk to disk.

    python -m benchmarks.quantisation_memory                  # two blocks, four samples of 2,048 tokens
    python -m benchmarks.quantisation_memory --quick          # does it work?

Writes a random model of mpt-7b-storywriter's shape with so many blocks, quantises it, and prints after every layer the
time it took and the peak of resident memory until then. A process of its own writes the model, so that the peak is
quantisation's alone. Ends with the arithmetic for all blocks, and one line of JSON.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.harness import finish, machine_card, require_green
from epilogue.checkpoint import save_checkpoint
from epilogue.model import MPT, NAMED_SIZES, MPTConfig
from epilogue.quant import HeldOut, Job, LayerReport, Scheme, quantise_checkpoint

WHOLE = NAMED_SIZES["mpt-7b-storywriter"]
TINY = replace(WHOLE, d_model=128, n_heads=4, vocab_size=512)
# GNU/Linux counts in KiB, macOS in bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def write_random(directory: Path, config: MPTConfig) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = MPT(config)
    model.init_weights(seed=0)
    save_checkpoint(directory, model.state_dict(), config)


def drawn(config: MPTConfig, num_samples: int, num_tokens: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(config.vocab_size, (num_samples, num_tokens), generator=generator).tolist()
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tiny shape, no tests first")
    parser.add_argument("--json", action="store_true", help="nothing but the closing line on stdout")
    args = parser.parse_args()
    if not args.quick:
        require_green(["tests/quant"])
    torch.set_num_threads(args.threads)
    card = machine_card()
    talk = sys.stderr if args.json else sys.stdout
    print(card, file=talk, flush=True)
    config = replace(TINY if args.quick else WHOLE, n_layers=args.blocks)
    layers = []

    def on_layer(report: LayerReport) -> None:
        now = time.perf_counter()
        row = asdict(report) | {"since_start_s": round(now - start, 1), "peak_gib": round(peak_bytes() / 2**30, 2)}
        layers.append(row)
        print(row, file=talk, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "dense"
        writer = multiprocessing.get_context("spawn").Process(target=write_random, args=(source, config))
        writer.start()
        writer.join()
        before = peak_bytes()
        start = time.perf_counter()
        job = Job(
            source=source,
            out=Path(folder) / "quantised",
            scheme=Scheme(bits=4, group_size=128),
            calibration=drawn(config, args.samples, args.sequence_length, seed=1),
            held_out=HeldOut(drawn(config, 1, 256, seed=2), 1024),
        )
        quantise_checkpoint(job, on_layer=on_layer)
        seconds = time.perf_counter() - start
    a_block_s = layers[-1]["since_start_s"] / args.blocks
    results = {
        "machine": card,
        "options": vars(args),
        "layers": layers,
        "before_gib": round(before / 2**30, 2),
        "peak_gib": round(peak_bytes() / 2**30, 2),
        "seconds": round(seconds, 1),
        "hours_for_32_blocks": round(32 * a_block_s / 3600, 2),
    }
    print(
        f"{args.blocks} blocks in {seconds:,.0f} s, peak {results['peak_gib']} GiB ({results['before_gib']} before); "
        f"{a_block_s:,.0f} s a block are {results['hours_for_32_blocks']} hours for 32",
        file=talk,
    )
    finish(results)


if __name__ == "__main__":
    main()
