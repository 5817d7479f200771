"""Whether a text fits in memory, said before any is taken.

Memory that is asked for but not yet written counts as free with the operating system, and a book that does not fit is
found out hours into reading. So the bytes are computed from the architecture and compared with what is available.
"""

import sys
from bisect import bisect_right

import psutil
import torch

from epilogue.errors import CapacityError
from epilogue.model import MPT, kv_bytes_per_token

# Queries up to which an accelerator without a tile kernel for them holds whole score rows (kernels/attention/op.py).
_FEW_QUERIES = 16
# Queries a tile has on the CPU (kernels/attention/cpu.py).
_TILE = 256
# Rows of V numbers in fp64 that choosing a token needs: scores, their order, probabilities and what comes between.
_SAMPLING_ROWS = 8


def available_bytes(device: torch.device) -> int:
    """Memory that can be taken on a device: what is free, and what PyTorch holds there unused.

    Where there is no way to ask, practically endless.
    """
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return sys.maxsize


def bytes_needed(model: MPT, num_tokens: int, *, chunk_tokens: int) -> int:
    """Bytes that a text of so many tokens takes beside the weights, at the worst moment of reading and writing it.

    Keys and values of the whole text, activations of one chunk, and one row of logits. Grows with every token.
    """
    chunk = min(num_tokens, chunk_tokens)
    kv = num_tokens * kv_bytes_per_token(model.config, model.dtype)
    logits = model.config.vocab_size * (model.dtype.itemsize + _SAMPLING_ROWS * torch.float64.itemsize)
    return kv + _stream_bytes(model, chunk) + _attention_bytes(model, num_tokens, chunk) + logits


def tokens_that_fit(model: MPT, *, chunk_tokens: int, available: int) -> int:
    """The longest text, in tokens, for which ``available`` bytes suffice and the model has positions."""
    most = available // kv_bytes_per_token(model.config, model.dtype)
    if model.config.has_position_embedding:
        most = min(most, model.config.max_seq_len)
    return bisect_right(range(1, most + 1), available, key=lambda n: bytes_needed(model, n, chunk_tokens=chunk_tokens))


def check_capacity(model: MPT, num_tokens: int, *, chunk_tokens: int, available: int) -> None:
    """Refuse a text that is too long, before anything is allocated.

    Args:
        model: which reads it.
        num_tokens: of the text and of the room to write.
        chunk_tokens: tokens that go through the model at once.
        available: bytes.

    Raises:
        CapacityError: it does not fit; the message says how many tokens would.
    """
    fit = tokens_that_fit(model, chunk_tokens=chunk_tokens, available=available)
    if num_tokens <= fit:
        return
    needed = bytes_needed(model, num_tokens, chunk_tokens=chunk_tokens)
    because = (
        f"need {_in_words(needed)} of memory and {_in_words(available)} are available"
        if needed > available
        else f"are more than the {model.config.max_seq_len:,} positions this model has learned"
    )
    raise CapacityError(
        f"{num_tokens:,} tokens (the text and the room to write) {because}; {fit:,} tokens would fit,"
        " so give a shorter text or less room"
    )


def _stream_bytes(model: MPT, chunk: int) -> int:
    """Activations of a block outside the attention kernel; norms may widen them to fp32."""
    config = model.config
    width = 4 * config.d_model + 2 * max(config.qkv_width, config.ffn_width)
    return chunk * width * max(model.dtype.itemsize, torch.float32.itemsize)


def _attention_bytes(model: MPT, num_tokens: int, chunk: int) -> int:
    """What the attention kernel takes beside queries, keys, values and output."""
    config = model.config
    wide = max(model.dtype.itemsize, torch.float32.itemsize)
    if model.device.type == "cpu":
        packed_keys_and_values = 2 * num_tokens * config.kv_n_heads * config.head_dim * wide
        biases = 2 * config.n_heads * (num_tokens + _TILE * min(chunk, _TILE)) * wide
        return packed_keys_and_values + biases
    has_tile_kernel = model.device.type == "cuda" and model.dtype != torch.float64
    queries = min(chunk, _FEW_QUERIES) if has_tile_kernel else chunk
    wide_keys_and_values = 2 * num_tokens * (config.kv_n_heads + config.n_heads) * config.head_dim * wide
    scores = 4 * config.n_heads * queries * num_tokens * wide
    return wide_keys_and_values + scores


def _in_words(num_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes} bytes"
