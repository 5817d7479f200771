"""Peak memory of one training step of the bundled model on the CPU, by what is kept for the way back.

    python -m benchmarks.training_memory --tokens 8192 16384

Each way runs in a process of its own: the largest resident set during loss and gradients of one sequence, less what
was resident before. Attention leaves out keys below epsilon 1e-6, the same in all. Ends with one JSON line.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.harness import finish, machine_card, require_green
from epilogue.checkpoint import load_checkpoint
from epilogue.kernels.linear_cross_entropy import linear_cross_entropy
from epilogue.model import MPT, Recompute

BUNDLED = Path(str(files("epilogue"))) / "bundled" / "epilogue-tiny"
TILE = 1024
WAYS: dict[str, tuple[bool, Recompute | None]] = {
    "everything kept, logits whole": (True, None),
    "logits in chunks": (False, None),
    "and selective": (False, Recompute(keeps_attention=True)),
    "and selective, tiles": (False, Recompute(keeps_attention=True, tile_tokens=TILE)),
    "and full": (False, Recompute()),
    "and full, tiles": (False, Recompute(tile_tokens=TILE)),
}


def loss_of(model: MPT, *, has_whole_logits: bool) -> Callable[[Tensor, Tensor], Tensor]:
    if not has_whole_logits:
        return model.loss

    def whole(ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x_RC = model.transformer(ids_BT).flatten(0, 1)
        weight_VC = model.transformer.wte.weight
        return linear_cross_entropy(x_RC, weight_VC, targets_BT.flatten(), backend="reference")

    return whole


def measure(way: str, num_tokens: int) -> dict[str, Any]:
    has_whole_logits, recompute = WAYS[way]
    model = load_checkpoint(BUNDLED, dtype=torch.float32).model.requires_grad_(True)
    model.set_recompute(recompute)
    model.set_epsilon(1e-6)
    ids_BT = torch.randint(model.config.vocab_size, (1, num_tokens + 1), generator=torch.Generator().manual_seed(0))
    loss = loss_of(model, has_whole_logits=has_whole_logits)
    loss(ids_BT[:, :257], ids_BT[:, 1:258]).backward()  # what libraries set up, and the gradients' own memory
    before = psutil.Process().memory_info().rss
    started_s = time.perf_counter()
    value = loss(ids_BT[:, :-1], ids_BT[:, 1:])
    value.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "way": way,
        "num_tokens": num_tokens,
        "peak_mib": round((peak - before) / 2**20),
        "s": round(time.perf_counter() - started_s, 1),
        "loss": round(value.item(), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--way", choices=WAYS, help="measure this alone, in this process")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.tokens[0])))
        return
    require_green(["tests/model/test_recompute.py", "tests/kernels/linear_cross_entropy"])
    rows = []
    for num_tokens in args.tokens:
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.training_memory", "--way", way, "--tokens", str(num_tokens)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    finish({"benchmark": "training_memory", "machine": machine_card(), "rows": rows})


if __name__ == "__main__":
    main()
