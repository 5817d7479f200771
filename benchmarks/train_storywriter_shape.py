"""MPT-7B-StoryWriter's shape with random weights, trained on windows of 65,536 tokens: speed, MFU, memory.

    python -m benchmarks.train_storywriter_shape --set optimizer.name=...     # one card; every setting of a recipe
    torchrun --nproc-per-node 2 -m benchmarks.train_storywriter_shape --set parallel.context=2 --tokens 131072
    python -m benchmarks.train_storywriter_shape --shape tiny --device cpu    # the same path in seconds

Steps are those of ``epilogue.train`` from batch to optimizer; nothing is saved. The first ones are not counted. MFU is
in causal floating-point operations, three times a forward pass's whatever is recomputed, against a bf16 product
measured now. Tests of training run first. Ends with one JSON line.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.kernel_times import kernel_times
from benchmarks.storywriter_shape import STORYWRITER, TINY, ceilings, synchronize
from epilogue.data import ShardWriter
from epilogue.model import MPTConfig, config_to_dict
from epilogue.text import train_tokenizer
from epilogue.train import Trainer, joined_processes, read_recipe
from epilogue.train.progress import training_flops


def write_random_book(folder: Path, num_tokens: int) -> None:
    """A folder of shards with one book of random ids; the vocabulary is the model's only in the head."""
    tokenizer = train_tokenizer(["no story at all"], vocab_size=280)
    writer = ShardWriter(folder, tokenizer)
    ids = np.random.default_rng(0).integers(tokenizer.vocab_size, size=num_tokens, dtype=np.int64)
    writer.add(ids, id="random", title="", text=bytes(num_tokens))
    writer.finish()


def write_recipe(folder: Path, config: MPTConfig, *, num_tokens: int, rows: int, device: str) -> Path:
    raw = config_to_dict(config)
    names = ("d_model", "n_heads", "n_layers", "vocab_size", "attn_config")
    recipe = {
        "train_shards": str(folder / "shards"),
        "validation_shards": str(folder / "shards"),
        "out": str(folder / "run"),
        "model": {"size": "mpt-7b-storywriter", "set": {name: raw[name] for name in names}},
        "steps": 1000,
        "context_tokens": num_tokens,
        "batch_tokens": num_tokens * rows,
        "micro_batch_tokens": num_tokens,
        "device": device,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def measure(trainer: Trainer, *, warm_up: int, steps: int, is_profiled: bool) -> dict[str, Any]:
    device, recipe = torch.device(trainer.device), trainer.recipe
    ceiling = ceilings(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    batches = trainer._windows.batches()
    times_s, losses = [], []
    for _ in range(warm_up + steps):
        synchronize(device)
        start = time.perf_counter()
        batch = next(batches)
        losses.append(trainer._train_step(batch))
        synchronize(device)
        times_s.append(time.perf_counter() - start)
    step_s = sorted(times_s[warm_up:])[steps // 2]
    flops = training_flops(trainer.model.config, batch.num_targets, batch.num_pairs)
    row = {
        "processes": trainer.mesh.size,
        "context_tokens": recipe.context_tokens,
        "batch_tokens": recipe.batch_tokens,
        "first_step_s": round(times_s[0], 2),
        "step_s": round(step_s, 3),
        "all_step_s": [round(x, 2) for x in times_s[warm_up:]],
        "tokens_per_s": round(recipe.batch_tokens / step_s),
        "causal_flop_per_s": round(flops / step_s),
        "ceiling_flop_per_s": round(ceiling["flop_per_s"]),
        "mfu": round(flops / step_s / ceiling["flop_per_s"] / trainer.mesh.size, 3),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if device.type == "cuda" else None,
        "losses": [round(loss, 4) for loss in losses],
    }
    if is_profiled:
        row["profile"] = kernel_times(lambda: trainer._train_step(next(batches)), repeats=1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("storywriter", "tiny"), default="storywriter")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, help="of a window; 65,536 of the large shape, 512 of the tiny one")
    parser.add_argument("--rows", type=int, default=1, help="windows a step")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe, as in `epilogue train`")
    parser.add_argument(
        "--profile", action="store_true", help="of one more step, too: its kernels, and the GPU's waits"
    )
    parser.add_argument("--untested", action="store_true", help="do not run the tests first")
    args = parser.parse_args()
    is_tiny = args.shape == "tiny"
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not measured: there is no CUDA device; --shape tiny --device cpu runs the same path", file=sys.stderr)
        return
    with joined_processes(args.device), tempfile.TemporaryDirectory() as place:
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        if is_first and not args.untested:
            require_green(
                ["tests/train/test_loop.py", "-m", "gpu" if args.device == "cuda" else "not gpu and not slow"]
            )
        num_tokens = args.tokens or (512 if is_tiny else 65_536)
        # Whole windows and no rest: a row of a few tokens would have its own kernels, and hardly a loss.
        write_random_book(Path(place) / "shards", (args.rows + 1) * num_tokens)
        config = TINY if is_tiny else STORYWRITER
        recipe = write_recipe(Path(place), config, num_tokens=num_tokens, rows=args.rows, device=args.device)
        trainer = Trainer(read_recipe(recipe, overrides=args.set))
        row = measure(
            trainer, warm_up=args.warm_up, steps=args.steps, is_profiled=args.profile and args.device == "cuda"
        )
        if is_first:
            name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
            finish({"machine": machine_card() | {"device": name}, "settings": args.set, "training": row})


if __name__ == "__main__":
    main()
