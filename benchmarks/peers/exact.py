"""Who still sees a key 70,000 tokens back, with alibi_bias_max 16: everybody's logits against fp64.

    python -m benchmarks.peers.exact
    python -m benchmarks.peers.exact --quick                 # does it work?

A tiny model whose flattest head looks for one token that stands at position 10 (benchmarks/peers/models.py) reads
60,000 and 70,000 random tokens. The reference is this repository's model in fp64 with nothing left out: PyTorch's fused
kernel for all tokens, held to the written-out softmax at a hundred of them, and that softmax in the last layer. A row
matches when no logit is off by more than 2 % of the logits' deviation; whether the likeliest token is the reference's
stands beside it. The row with the needle taken out says what not seeing it costs.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import finish, machine_card, require_green
from benchmarks.peers.llama import LlamaReader
from benchmarks.peers.models import NEEDLE, NEEDLE_POSITION, needle_like
from epilogue.engine import Engine, Storage
from epilogue.kernels.attention import attention
from epilogue.kernels.attention.reference import attention_reference
from epilogue.model import MPT

Reading = Iterator[Tensor]
"""logits_V behind every one of the lengths asked for."""
_CHUNK_TOKENS = 256
_NUM_CHECKED = 100
_MOST_OFF = 0.02


@torch.no_grad()
def read_reference(model: MPT, ids: list[int], ends: list[int]) -> Reading:
    """In fp64; the last layer at the ends alone, which is all that the head sees."""
    exact = MPT(model.config).double()
    exact.load_state_dict(model.state_dict())
    x_TC = exact.transformer.wte(torch.tensor(ids))
    for layer, block in enumerate(exact.transformer.blocks):
        is_last = layer == len(exact.transformer.blocks) - 1
        q_BTHD, k_BTHD, v_BTHD = block.attn._project(block.norm_1(x_TC[None]))
        written_out = {
            end: attention_reference(
                q_BTHD[:, end - 1 : end], k_BTHD[:, :end], v_BTHD[:, :end], exact.slopes_H, scale=block.attn.scale
            )[0, 0]
            for end in (ends if is_last else range(1, len(ids) + 1, len(ids) // _NUM_CHECKED))
        }
        out_THD = torch.zeros_like(q_BTHD[0])
        if not is_last:
            out_THD = attention(q_BTHD, k_BTHD, v_BTHD, exact.slopes_H, scale=block.attn.scale, backend="cpu")[0]
        for end, out_HD in written_out.items():
            if not is_last:
                torch.testing.assert_close(out_THD[end - 1], out_HD, rtol=1e-9, atol=1e-11)
            out_THD[end - 1] = out_HD
        x_TC = x_TC + block.attn.out_proj(out_THD.flatten(1))
        x_TC = x_TC + block.ffn(block.norm_2(x_TC))
    for end in ends:
        yield exact.head(exact.transformer.norm_f(x_TC[end - 1]))


def read_ours(model: MPT, ids: list[int], ends: list[int], storage: Storage) -> Reading:
    """As the engine reads: within reach, pages evicted."""
    engine = Engine(model, storage=storage, lookup=False)
    sequence = engine.open_book(ids[: ends[0]], room_tokens=ends[-1] - ends[0])
    for end in ends:
        engine.append(sequence, ids[sequence.num_tokens : end])
        assert sequence.logits_V is not None
        yield sequence.logits_V


def read_llama(gguf: Path, ids: list[int], ends: list[int], *, threads: int, has_flash_attention: bool) -> Reading:
    """llama.cpp with its f16 keys and values."""
    room = len(ids) + 1
    reader = LlamaReader(gguf, room_tokens=room, threads=threads, has_flash_attention=has_flash_attention)
    with closing(reader):
        for end in ends:
            reader.read(ids[reader.num_tokens : end])
            yield reader.logits_V()


@torch.no_grad()
def read_transformers(checkpoint: Path, ids: list[int], ends: list[int]) -> Reading:
    """transformers' own MPT, in chunks, its max_seq_len set to the text's: without that it stops with an error."""
    from transformers import DynamicCache, MptForCausalLM

    model = MptForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.config.max_seq_len = ends[-1]
    cache, done = DynamicCache(config=model.config), 0
    for end in ends:
        while done < end:
            chunk = torch.tensor([ids[done : min(done + _CHUNK_TOKENS, end)]])
            logits = model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            done += chunk.shape[1]
        yield logits[0, -1]


def compare(name: str, read: Callable[[], Reading], wanted: list[Tensor], ends: list[int]) -> dict[str, Any]:
    begun = time.perf_counter()
    row: dict[str, Any] = {"name": name}
    try:
        got = [logits_V.double() for logits_V in read()]
    except Exception as error:  # a peer that cannot is a result
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{name:34}  cannot: {row['error'][:100]}", flush=True)
        return row
    for end, got_V, wanted_V in zip(ends, got, wanted, strict=True):
        off = float((got_V - wanted_V).abs().max() / wanted_V.std())
        is_same_token = int(got_V.argmax()) == int(wanted_V.argmax())
        row[str(end)] = {"off": off, "is_match": off <= _MOST_OFF, "is_same_token": is_same_token}
    row["seconds"] = round(time.perf_counter() - begun, 1)
    print(f"{name:34}  {'   '.join(_words(end, row[str(end)]) for end in ends)}   {row['seconds']:6.1f} s", flush=True)
    return row


def _words(end: int, figures: dict[str, Any]) -> str:
    match, token = ("yes" if figures[key] else "no" for key in ("is_match", "is_same_token"))
    return f"{end:,}: off {figures['off']:8.5f}, match {match:3}, same token {token:3}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="2,000 and 3,000 tokens, no tests first")
    args = parser.parse_args()
    if not args.quick:
        require_green(["tests/checkpoint/test_gguf.py", "tests/engine/test_engine.py"])
    torch.set_num_threads(args.threads)
    card = machine_card()
    print(card)
    ends = [2000, 3000] if args.quick else [60_000, 70_000]
    ids = torch.randint(NEEDLE, (ends[-1],), generator=torch.Generator().manual_seed(0)).tolist()
    blind = list(ids)
    ids[NEEDLE_POSITION] = NEEDLE
    print("largest error of a logit over the logits' deviation, behind so many tokens")
    with tempfile.TemporaryDirectory() as folder:
        model, gguf = needle_like(Path(folder))
        wanted = list(read_reference(model, ids, ends))
        readings: dict[str, Callable[[], Reading]] = {}
        for storage in ("float32", "int8", "int4"):
            readings[f"epilogue, {storage}"] = lambda storage=storage: read_ours(model, ids, ends, storage)
        readings["epilogue, needle taken out"] = lambda: read_ours(model, blind, ends, "float32")
        for has_flash, kind in ((True, "flash attention"), (False, "no flash attention")):
            readings[f"llama.cpp, {kind}"] = lambda has_flash=has_flash: read_llama(
                gguf, ids, ends, threads=args.threads, has_flash_attention=has_flash
            )
        readings["transformers, max_seq_len raised"] = lambda: read_transformers(gguf.with_suffix(""), ids, ends)
        rows = [compare(name, read, wanted, ends) for name, read in readings.items()]
    finish({"machine": card, "threads": args.threads, "ends": ends, "rows": rows})


if __name__ == "__main__":
    main()
