"""What a loaded model is: one short name for its arithmetic and its weights, whatever files they came from."""

import json
from dataclasses import asdict

import torch
import xxhash
from torch import Tensor

from epilogue.model import MPT

# Fields of a config that change no number that this program computes: names, versions, how it was made or is run.
_SILENT = ("extra", "init_config", "max_seq_len", "use_cache", "embedding_fraction", "resid_pdrop", "emb_pdrop")
_SILENT_ATTENTION = ("attn_impl", "attn_pdrop")


def fingerprint(model: MPT) -> str:
    """32 hexadecimal digits, the same for the same architecture, weights and dtype, and for no others in practice.

    xxh3 with 128 bits is no cryptographic hash: it tells models apart, it does not prove who made one. Every byte of
    every weight and buffer goes through it, at about the speed of memory.

    Args:
        model: with its weights as they are used; on another device than the CPU they are copied, one at a time.
    """
    digest = xxhash.xxh3_128(json.dumps(_arithmetic(model), sort_keys=True).encode())
    tensors: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row by row, without a copy where it lies so on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _arithmetic(model: MPT) -> dict[str, object]:
    # A learned position has a row of its own, so the number of positions shows in a tensor's shape.
    config = asdict(model.config)
    attention = {k: v for k, v in config.pop("attn_config").items() if k not in _SILENT_ATTENTION}
    return {k: v for k, v in config.items() if k not in _SILENT} | {"attn_config": attention}
