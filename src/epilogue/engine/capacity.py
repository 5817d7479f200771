"""How many pages there is memory for, and how many tokens that holds: said before any is taken.

Memory that is asked for but not yet written counts as free with the operating system, and a book that does not fit is
found out long after reading began. So everything is computed from the architecture.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable

import psutil
import torch

from epilogue.errors import CapacityError
from epilogue.kernels.extension import native_is_available
from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage
from epilogue.model import MPT, page_bytes

# Left to the system and to what is not counted.
_SHARE = 0.9
# Of what is free, for weights that are kept twice.
_COPIES_SHARE = 0.05
# Of what a GPU has free, for a longer chunk's activations: longer ones keep it busier (benchmarks/results), and others
# wait longer for their turn.
_CHUNK_SHARE = 1 / 16
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


def chunk_tokens_for(model: MPT, *, available: int) -> int:
    """How many tokens of a long text to read at once, if nobody says."""
    if model.device.type == "cpu":
        return 1024
    longer = 12288
    return longer if _chunk_bytes(model, longer) <= _CHUNK_SHARE * available else 8192


def pages_that_fit(model: MPT, storage: Storage, *, chunk_tokens: int, available: int, most: int = 2**22) -> int:
    """Pages for which ``available`` bytes suffice beside everything else that reading and writing takes.

    While a chunk is read, one layer's keys and values stand beside their pages, twice, in fp32 or wider.
    """
    config = model.config
    fixed = _chunk_bytes(model, chunk_tokens) + config.vocab_size * (4 + 8 * _SAMPLING_ROWS)
    gathered = 2 * 2 * PAGE_TOKENS * config.head_dim * _widest(model) / config.n_layers
    return max(0, min(most, int((_SHARE * available - fixed) / (page_bytes(config, storage) + gathered))))


def _widest(model: MPT) -> int:
    """Bytes of a number that is made on the way."""
    return max(4, model.dtype.itemsize)


def _chunk_bytes(model: MPT, chunk_tokens: int) -> int:
    """Of a chunk's activations, in fp32 or wider."""
    config = model.config
    return chunk_tokens * (4 * config.d_model + 2 * max(config.qkv_width, config.ffn_width)) * _widest(model)


def copies_pay(model: MPT, *, available: int) -> bool:
    """Whether weights may be kept twice to be read faster: on a CPU, through the extension, and small beside memory."""
    if model.device.type != "cpu" or model.dtype != torch.float32 or not native_is_available():
        return False
    return sum(weight.nbytes for weight in model.parameters()) // 2 <= _COPIES_SHARE * available


def check_fits(
    num_tokens: int, pages_needed: Callable[[int], int], *, num_free: int, most_positions: int | None
) -> None:
    """Refuse a text that could need more than there is, before anything of it is read.

    Args:
        num_tokens: of the text and of the room to write.
        pages_needed: how many free pages a text of so many tokens can need at most; never falls.
        num_free: pages.
        most_positions: that the model has learned, if it has.

    Raises:
        CapacityError: the message says how many tokens would fit.
    """
    most = num_tokens if most_positions is None else min(num_tokens, most_positions)
    needed = pages_needed(num_tokens)
    if num_tokens <= most and needed <= num_free:
        return
    fit = bisect_right(range(1, most + 1), num_free, key=pages_needed)
    because = (
        f"are more than the {most:,} positions this model has learned"
        if num_tokens > most
        else f"can need {needed:,} pages of keys and values and there is memory for {num_free:,}"
    )
    raise CapacityError(
        f"{num_tokens:,} tokens (the text and the room to write) {because}; {fit:,} tokens would fit, "
        "so give a shorter text or less room"
    )
