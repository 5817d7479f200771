"""Causal ALiBi attention for reading on a Hopper GPU: FlashAttention 4's kernel under our bias and block tables.

Twice as fast as FlexAttention there (benchmarks/results), forward only, and an extra (``epilogue[flash]``): where it is
not installed, FlexAttention reads too.
"""

import logging
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from epilogue.kernels.attention.block_tables import BLOCK_TOKENS, BlockTables

MOST_KEYS = 2**22
"""How far ``hopper_scores`` can shift a distance."""
_MOST_HEADS = 128
"""Slopes are arguments of the kernel, a number a head."""
_WORTH_TWO_LAUNCHES = 2048
"""Queries from which on a launch's end is worth filling."""
_slopes_seen = WeakTensorKeyDictionary()
_log = logging.getLogger("epilogue.kernels")


def can_attend(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_start_BT: Tensor | None) -> bool:
    """Whether this kernel is here and made for such a call."""
    # Also where gradients are wanted later (model.recompute): the pass that is made again must round like the first.
    is_training = any(x.requires_grad for x in (q_BTHD, k_BSKD, v_BSKD))
    return (
        q_BTHD.device.type == "cuda"
        and document_start_BT is None
        and q_BTHD.dtype in (torch.bfloat16, torch.float16)
        and q_BTHD.shape[2] <= _MOST_HEADS
        and q_BTHD.shape[3] in range(8, 129, 8)
        and k_BSKD.shape[1] <= MOST_KEYS
        and not is_training
        and torch.cuda.get_device_capability(q_BTHD.device)[0] == 9
        and is_installed()
    )


@lru_cache(maxsize=1)
def is_installed() -> bool:
    """Whether FlashAttention 4 can be imported; one that is there and cannot is told of once."""
    try:
        import flash_attn.cute.interface  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name in ("flash_attn", "flash_attn.cute"):
            return False
        _log.warning("FlashAttention 4 is installed but %s is missing; FlexAttention reads instead", error.name)
        return False
    except (ImportError, AttributeError) as error:
        _log.warning("FlashAttention 4 is installed but cannot be imported (%s); FlexAttention reads instead", error)
        return False
    return True


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention_hopper(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_key_HN: Tensor | None = None,
    document_start_BT: Tensor | None = None,
) -> Tensor:
    """Attention in O(B*T*H*D) memory beyond its inputs. Compiled once a head shape.

    Returns:
        out_BTHD in the dtype of the queries.

    Raises:
        ValueError: sequences are packed out of documents.
        ImportError: FlashAttention 4 is not installed.
    """
    if document_start_BT is not None:
        raise ValueError("the Hopper kernel reads one document a sequence, got packed ones; flex takes them")

    tables = BlockTables.of(q_BTHD.shape[1], k_BSKD.shape[1], q_BTHD.device, first_key_HN)
    numbers, out_BTHD = _numbers(slopes_H), q_BTHD.new_empty(q_BTHD.shape)

    def launch(heads: slice, kv_heads: slice) -> None:
        q, k, v, out = q_BTHD[:, :, heads], k_BSKD[:, :, kv_heads], v_BSKD[:, :, kv_heads], out_BTHD[:, :, heads]
        _launch(q, k, v, out, tables=tables.of_heads(heads), numbers=numbers[heads], scale=scale)

    flattest, *others = head_parts(q_BTHD, k_BSKD)
    here, aside = torch.cuda.current_stream(q_BTHD.device), _stream_with_precedence(q_BTHD.device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        launch(*flattest)
    for part in others:
        launch(*part)
    here.wait_stream(aside)
    return out_BTHD


def _launch(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BTHD: Tensor,
    *,
    tables: BlockTables,
    numbers: tuple[object, ...],
    scale: float,
) -> None:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import _flash_attn_fwd

    from epilogue.kernels.attention.hopper_scores import add_bias, is_causal

    _flash_attn_fwd(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        softmax_scale=scale,
        score_mod=add_bias,
        mask_mod=is_causal,
        block_sparse_tensors=BlockSparseTensorsTorch(
            tables.num_masked_BHR,
            tables.masked_BHRS,
            tables.num_full_BHR,
            tables.full_BHRS,
            block_size=(BLOCK_TOKENS, BLOCK_TOKENS),
        ),
        out=out_BTHD,
        aux_scalars=numbers,
        pack_gqa=False,
        mma_pv_is_rs=False,  # probabilities by way of shared memory: 1.2 % of a reading (docs/log.md)
    )


def head_parts(q_BTHD: Tensor, k_BSKD: Tensor) -> list[tuple[slice, slice]]:
    """Heads of queries, and theirs of keys, that go through a launch each, the first with precedence.

    A launch takes heads in their order, so ALiBi's flattest, whose tiles take longest, come last, and most of the card
    waits for a few of them: computed for a chunk of a book, 5 % of the time. With the second half of the heads ahead of
    the first, short tiles come last.
    """
    heads, kv_heads = q_BTHD.shape[2], k_BSKD.shape[2]
    if q_BTHD.shape[1] < _WORTH_TWO_LAUNCHES or heads % 2 or (kv_heads % 2 and kv_heads > 1):
        return [(slice(heads), slice(kv_heads))]
    half, kv_half = heads // 2, kv_heads // 2
    return [(slice(half, heads), slice(kv_half, kv_heads)), (slice(half), slice(kv_half or 1))]


@lru_cache(maxsize=8)
def _stream_with_precedence(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)


def _numbers(slopes_H: Tensor) -> tuple[object, ...]:
    """The slopes as the kernel's arguments; asked of the device once, since asking waits for all it has to do."""
    from cutlass import Float32

    version = None if slopes_H.is_inference() else slopes_H._version  # the former count no changes
    seen, numbers = _slopes_seen.get(slopes_H, (None, ()))
    if version is None or seen != version:
        numbers = tuple(Float32(slope) for slope in slopes_H.tolist())
        _slopes_seen[slopes_H] = (version, numbers)
    return tuple(numbers)
