"""A step's new token: its key and value written to their pages, and each head's first page planned, in one launch.

The step is bound by its launches. In PyTorch's operators the same takes some forty of them a layer: the slow twin,
``model.token_step`` without this.
"""

import math
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.storage import PageTensors


@dataclass(frozen=True)
class PrefixBounds:
    """What bounds the weight of every prefix of a text's pages: exp(norm of q * running + costs - own score).

    Whoever plans vouches for it; see ``model.reach``.
    """

    running_BKP: Tensor
    """fp64: no key of a prefix has a larger norm."""
    costs_BHP: Tensor
    """fp64: the rest of the exponent; infinite where a prefix must not be skipped."""
    first_live_BK: Tensor
    """int64: pages before it are gone, and weighed at most epsilon."""
    epsilon: float
    """Prefixes that weigh at most so much are skipped; 0 skips none."""
    rounding: float
    """Norms and scores as computed may be wrong by this share of |q| |k|."""
    least: float
    """What a norm may be too small by."""


@dataclass(frozen=True)
class TakenIn:
    """What ``take_in`` fills."""

    queries_BTHD: Tensor | None
    """The clamped queries, in their dtype; None where nothing is clamped."""
    keys_BKD: Tensor
    """fp32: the new keys as their storage gives them back."""
    first_page_BH: Tensor
    """int64."""
    nats_BH: Tensor
    """fp64: log of what is left out of a probability at most; -inf for nothing."""


def can_take_in(q_BTHD: Tensor, keys: PageTensors, values: PageTensors) -> bool:
    """Whether ``take_in`` knows these dtypes and storages."""
    return q_BTHD.dtype in (torch.float32, torch.bfloat16) and "int4" not in (keys.storage, values.storage)


def take_in(
    qkv: tuple[Tensor, Tensor, Tensor],
    pools: tuple[PageTensors, PageTensors],
    page_table_BKP: Tensor,
    num_keys_B: Tensor,
    bounds: PrefixBounds,
    *,
    scale: float,
    clip: float | None = None,
    out: TakenIn,
) -> None:
    """Write one token of each text into its pages and plan what its queries look at. Waits for nothing.

    Args:
        qkv: q_BTHD, k_BTKD and v_BTKD with T = 1, for which ``can_take_in`` holds.
        pools: of keys and of values.
        page_table_BKP: int32; a head whose page is -1 writes nothing.
        num_keys_B: int64, the new tokens included.
        bounds: of the pages that are wholly older than the new tokens.
        scale: factor on q.k.
        clip: queries, keys and values are clamped to -clip..clip first.
        out: contiguous; is overwritten.

    Raises:
        ValueError: more than one token a text, or what ``can_take_in`` refuses.
    """
    if qkv[0].shape[1] != 1 or not can_take_in(qkv[0], *pools):
        raise ValueError(f"wanted one fp32 or bf16 token a text and no int4 pages, got {tuple(qkv[0].shape)}")
    # Triton comes in with the first call: a machine without an accelerator may lack it.
    kernel = import_module("epilogue.kernels.paged_attention.take_in_kernels").take_in_kernel
    rows = [x if x.stride()[2:] == (x.shape[3], 1) else x.contiguous() for x in qkv]
    head_dim, (num_kv_heads, num_columns) = rows[0].shape[3], page_table_BKP.shape[1:]
    group = rows[0].shape[2] // num_kv_heads
    kernel[(num_kv_heads, len(rows[0]), group + 1)](
        *rows, *(x.stride(0) for x in rows),
        *(x for pages in pools for x in (pages.data_PWD, pages.data_PWD if pages.scale_PW is None else pages.scale_PW)),
        page_table_BKP, num_keys_B, bounds.first_live_BK, bounds.running_BKP, bounds.costs_BHP,
        rows[0] if out.queries_BTHD is None else out.queries_BTHD, out.keys_BKD, out.first_page_BH, out.nats_BH,
        num_kv_heads, num_columns,
        PAGE_TOKENS=pools[0].data_PWD.shape[1], HEAD_DIM=head_dim, BLOCK_D=_next_power_of_2(head_dim),
        BLOCK_P=min(1024, _next_power_of_2(num_columns)), GROUP=group,
        K_HAS_SCALE=pools[0].scale_PW is not None, V_HAS_SCALE=pools[1].scale_PW is not None,
        CLIP=clip, SCALE=scale, LOG_EPSILON=math.log(bounds.epsilon) if bounds.epsilon > 0 else -math.inf,
        ROUNDING=bounds.rounding, LEAST=bounds.least,
    )  # fmt: skip


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
