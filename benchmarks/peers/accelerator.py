"""Reading and writing on a GPU against transformers' own MPT: the same random weights in bf16, one run.

    python -m benchmarks.peers.accelerator                             # one CUDA card of 80 GB or more
    python -m benchmarks.peers.accelerator --shape tiny --device cpu   # does it work?

MPT-7B's shape with alibi_bias_max 8, the only one that transformers' MPT can compute. A length that it cannot hold in
memory is said to be so; llama.cpp runs on the CPU alone where its package has no CUDA build, and is not in this table.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt.configuration_mpt import MptAttentionConfig

from benchmarks.harness import finish, machine_card
from benchmarks.storywriter_shape import STORYWRITER, TINY, build, synchronize
from epilogue.engine import Engine, SamplingParams
from epilogue.model import MPT, MPTConfig

NEW_TOKENS = 16


def shape(is_tiny: bool) -> MPTConfig:
    config = TINY if is_tiny else STORYWRITER
    return replace(config, attn_config=replace(config.attn_config, alibi_bias_max=8, clip_qkv=6.0))


def as_transformers(model: MPT, config: MPTConfig, longest: int) -> MptForCausalLM:
    """Their classes around our weights; nothing is copied."""
    theirs = MptConfig(
        d_model=config.d_model, n_heads=config.n_heads, n_layers=config.n_layers, vocab_size=config.vocab_size,
        max_seq_len=longest, no_bias=True, attn_config=MptAttentionConfig(alibi=True, clip_qkv=6.0),
    )  # fmt: skip
    with torch.device("meta"):
        shell = MptForCausalLM(theirs)
    shell.load_state_dict(model.state_dict(), strict=False, assign=True)
    shell.tie_weights()
    return shell.eval()


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start


def ours(model: MPT, ids: list[int], device: torch.device) -> dict[str, Any]:
    engine = Engine(model, storage="bfloat16", num_pages=None if device.type == "cuda" else 4000, lookup=False)
    engine.close(engine.open_book(ids[::-1]))
    sequence, read_s = timed(lambda: engine.open_book(ids, room_tokens=4 * NEW_TOKENS), device)
    greedy = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=NEW_TOKENS)
    list(engine.stream(sequence, greedy))
    tokens, write_s = timed(lambda: list(engine.stream(sequence, greedy)), device)
    engine.close(sequence)
    return figures("epilogue", ids, read_s, write_s / len(tokens))


@torch.inference_mode()
def theirs(model: MptForCausalLM, ids: list[int], device: torch.device) -> dict[str, Any]:
    inputs = torch.tensor([ids], device=device)
    try:
        model(inputs[:, :64], use_cache=True)
        out, read_s = timed(lambda: model(inputs, use_cache=True, logits_to_keep=1), device)
        state = {"token": out.logits[:, -1:].argmax(-1), "past": out.past_key_values}

        def write() -> None:
            for _ in range(NEW_TOKENS):
                step = model(state["token"], past_key_values=state["past"], use_cache=True)
                state["token"], state["past"] = step.logits[:, -1:].argmax(-1), step.past_key_values

        write()
        _, write_s = timed(write, device)
        return figures("transformers", ids, read_s, write_s / NEW_TOKENS)
    except torch.cuda.OutOfMemoryError as error:
        return {"who": "transformers", "num_tokens": len(ids), "missing": str(error).split(". ")[1]}


def figures(who: str, ids: list[int], read_s: float, token_s: float) -> dict[str, Any]:
    return {
        "who": who,
        "num_tokens": len(ids),
        "read_s": round(read_s, 3),
        "read_tokens_per_s": round(len(ids) / read_s),
        "write_tokens_per_s": round(1 / token_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("storywriter", "tiny"), default="storywriter")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+")
    args = parser.parse_args()
    device, is_tiny = torch.device(args.device), args.shape == "tiny"
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: there is no CUDA device; --shape tiny --device cpu runs the same path", file=sys.stderr)
        return
    lengths = args.lengths or ([64, 200] if is_tiny else [2048, 8192, 16384, 32768, 83968])
    card = machine_card() | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"}
    config = shape(is_tiny)
    model = build(config, device)
    peer = as_transformers(model, config, lengths[-1] + 4 * NEW_TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (lengths[-1],), generator=generator).tolist()
    rows = []
    for length in lengths:
        for run, subject in ((theirs, peer), (ours, model)):
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            rows.append(run(subject, ids[:length], device))  # type: ignore[operator]
            print(rows[-1], flush=True)
    finish({"machine": card, "rows": rows})


if __name__ == "__main__":
    main()
