"""What a model's weights allow its queries and keys to be, for eviction. Derivation: docs/numerics.md.

A block's attention sees gain * z + bias with |z| <= sqrt(C), whatever the text. So for a head with query weights A
(gain included) and constant part a, q = A z + a, and |q.k| <= sqrt(C) |A^T k| + |a.k|. The score of a query's own key
is a quadratic form in the same z, and its smallest eigenvalue is the floor. Behind a norm of their own, queries and
keys have the same form, with the norm's gain for A. A clamp only shortens vectors, but turns them too: of the weights'
bounds the norms remain, beside the clamp's own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epilogue.kernels.paged_attention import Storage
from epilogue.model.blocks import Attention, Block
from epilogue.model.config import MPTConfig
from epilogue.model.eviction import EvictionBounds
from epilogue.model.mpt import MPT

_ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
"""By what share a norm, a projection or a clamp may be off when a block computes in a dtype. Some units in the last
place (more in fp32, which costs nothing); a hidden state whose mean is hundreds of times its deviation is not provided
for, and no norm in that dtype would be."""


@dataclass(frozen=True)
class _Heads:
    """Queries or keys of a layer's heads: matrix_HDC @ z + constant_HD with |z| <= length; C is D behind norms.

    fp64. What is computed lies within error_H of that.
    """

    matrix_HDC: Tensor
    constant_HD: Tensor
    error_H: Tensor
    length: float

    def shared_by(self, group: int) -> "_Heads":
        """Key heads as the query heads see them."""
        matrix, constant, error = (
            x.repeat_interleave(group, dim=0) for x in (self.matrix_HDC, self.constant_HD, self.error_H)
        )
        return _Heads(matrix, constant, error, self.length)

    def largest_norm_H(self, clip: float) -> Tensor:
        """No exact vector is longer."""
        free_H = self.length * _spectral_norm(self.matrix_HDC) + self.constant_HD.norm(dim=1)
        largest_H: Tensor = free_H.clamp(max=clip * math.sqrt(self.constant_HD.shape[1]))
        return largest_H


@torch.no_grad()
def eviction_bounds(model: MPT, storage: Storage) -> EvictionBounds:
    """Bounds for every layer and head, in fp64 on the model's device: three small eigenvalue problems a head.

    Weights that are not finite bound nothing, and nothing is evicted.

    Args:
        model: its weights as they will be used.
        storage: what keys go through before their own query sees them.
    """
    config, rounding = model.config, _ROUNDING[model.dtype]
    clip = config.attn_config.clip_qkv
    clip = math.inf if clip is None or _has_qk_norm(config) else clip * (1 + rounding)
    columns = []
    for block in model.transformer.blocks:
        assert isinstance(block, Block)
        held = (*block.norm_1.parameters(), *block.attn.parameters(), *block.attn.buffers())
        if all(bool(x.isfinite().all()) for x in held):
            columns.append(_layer_bounds(config, block, clip, rounding, _storage_error(storage, config.head_dim)))
        else:
            columns.append(_no_bounds(config, model.device))
    root, offset, error, floor, largest = (torch.stack(column) for column in zip(*columns, strict=True))
    scaled_clip = abs(config.softmax_scale) * clip if clip < math.inf else math.inf
    return EvictionBounds(root.float(), offset.float(), error.float(), scaled_clip, floor, largest)


def _storage_error(storage: Storage, head_dim: int) -> float:
    """How far a stored key may lie from the key, as a share of its norm.

    A float is off by half a unit in its own last place. A code is off by half a step: int8 steps are 1/127 of the
    largest element, int4 steps 1/15 of the span, which is at most sqrt(2) of the norm.
    """
    width = math.sqrt(head_dim)
    errors = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "int8": width / 254, "int4": math.sqrt(2) * width / 30}
    return errors[storage] * (1 + 1e-4) + 1e-6


def _layer_bounds(
    config: MPTConfig, block: Block, clip: float, rounding: float, stored: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """root_HDD, offset_HD, error_H, floor_H and largest_H of EvictionBounds."""
    has_norm, scale = _has_qk_norm(config), config.softmax_scale
    q, k = _normed(config, block.attn, rounding) if has_norm else _projected(config, block, rounding)
    k = k.shared_by(config.n_heads // config.kv_n_heads)
    q_norm_H, k_norm_H = q.largest_norm_H(clip), k.largest_norm_H(clip)
    if clip < math.inf:
        root_HDD = q_norm_H[:, None, None] * torch.eye(config.head_dim, dtype=torch.float64, device=q_norm_H.device)
        offset_HD = torch.zeros_like(q.constant_HD)
    else:
        root_HDD, offset_HD = q.length * _root(q.matrix_HDC), q.constant_HD
    is_free = clip == math.inf and not has_norm
    floor_H = _smallest_own(q, k, scale) if is_free else -abs(scale) * q_norm_H * k_norm_H

    # largest_scores computes in fp32, and so may the kernel that takes the product.
    fp32 = (config.head_dim + 8) * 2.0**-23
    error_H = q.error_H + fp32 * (torch.linalg.matrix_norm(root_HDD) + offset_HD.norm(dim=1))
    off_H = k.error_H + stored * (k_norm_H + k.error_H)
    largest_H = abs(scale) * (q_norm_H + error_H) * (k_norm_H + off_H)
    floor_H = floor_H - abs(scale) * (q_norm_H * off_H + q.error_H * (k_norm_H + off_H)) - fp32 * largest_H
    return abs(scale) * root_HDD, abs(scale) * offset_HD, abs(scale) * error_H, floor_H, largest_H * (1 + 1e-3)


def _no_bounds(config: MPTConfig, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    heads, width = config.n_heads, config.head_dim
    infinite_H = torch.full((heads,), math.inf, dtype=torch.float64, device=device)
    zeros = torch.zeros(heads, width, width, dtype=torch.float64, device=device)
    return zeros, zeros[..., 0], infinite_H, -infinite_H, infinite_H


def _has_qk_norm(config: MPTConfig) -> bool:
    return config.attn_config.qk_ln or config.attn_config.qk_gn


def _projected(config: MPTConfig, block: Block, rounding: float) -> tuple[_Heads, _Heads]:
    """Every query head and key head as a linear map of the block's normalised input."""
    linear, (gain_C, bias_C) = block.attn.Wqkv, _gain_and_bias(block.norm_1)
    width, kv_width = config.d_model, config.kv_n_heads * config.head_dim
    used: Tensor = linear.weight  # of a quantised layer made anew at every look
    weight = used.double()[: width + kv_width]
    extra = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.double()[: len(weight)]
    constant, matrix = weight @ bias_C + extra, weight * gain_C
    if isinstance(block.norm_1, nn.LayerNorm):
        matrix = matrix - matrix.mean(dim=1, keepdim=True)  # z has mean 0

    length = math.sqrt(width)
    input_norm = length * gain_C.abs().max() + bias_C.norm()
    unit = 2.0**-53 if used.dtype == torch.float64 else 2.0**-24
    heads = []
    for rows in (slice(width), slice(width, None)):
        matrix_HDC, weight_HDC = (x[rows].unflatten(0, (-1, config.head_dim)) for x in (matrix, weight))
        constant_HD, extra_HD = (x[rows].unflatten(0, (-1, config.head_dim)) for x in (constant, extra))
        error_H = rounding * (_spectral_norm(weight_HDC) * input_norm + extra_HD.norm(dim=1))
        summing_H = width * unit * torch.linalg.matrix_norm(weight_HDC) * input_norm
        heads.append(_Heads(matrix_HDC, constant_HD, error_H + summing_H, length))
    return heads[0], heads[1]


def _normed(config: MPTConfig, attention: Attention, rounding: float) -> tuple[_Heads, _Heads]:
    """Behind a norm of its own a head is gain * z + bias with |z| <= sqrt(width of the norm)."""
    heads = []
    for norm, count in ((attention.q_ln, config.n_heads), (attention.k_ln, config.kv_n_heads)):
        gain, bias = _gain_and_bias(norm)
        length, repeats = math.sqrt(len(gain)), count * config.head_dim // len(gain)
        gain_HD, bias_HD = (x.repeat(repeats).unflatten(0, (-1, config.head_dim)) for x in (gain, bias))
        error_H = rounding * (length * gain_HD.abs().amax(dim=1) + bias_HD.norm(dim=1))
        heads.append(_Heads(torch.diag_embed(gain_HD), bias_HD, error_H, length))
    return heads[0], heads[1]


def _gain_and_bias(norm: nn.Module) -> tuple[Tensor, Tensor]:
    gain, bias = norm.get_parameter("weight").double(), getattr(norm, "bias", None)
    return gain, torch.zeros_like(gain) if bias is None else bias.double()


def _smallest_own(q: _Heads, k: _Heads, scale: float) -> Tensor:
    """floor_H: the least of scale * (A z + a).(B z + b) over all z, or less."""
    a_HDC, a_HD, b_HDC, b_HD = scale * q.matrix_HDC, scale * q.constant_HD, k.matrix_HDC, k.constant_HD
    cross_HC = torch.einsum("hdc,hd->hc", a_HDC, b_HD) + torch.einsum("hdc,hd->hc", b_HDC, a_HD)
    quadratic_H = q.length**2 * _smallest_eigenvalue(a_HDC, b_HDC)
    floor_H: Tensor = quadratic_H - q.length * cross_HC.norm(dim=1) + (a_HD * b_HD).sum(dim=1)
    return floor_H


def _smallest_eigenvalue(a_HDC: Tensor, b_HDC: Tensor) -> Tensor:
    """Of (A^T B + B^T A) / 2 and never above 0; on the span of both matrices' rows, for it is 0 outside."""
    a_norm_H, b_norm_H = (_spectral_norm(x).clamp(min=1e-300) for x in (a_HDC, b_HDC))
    both = torch.cat([a_HDC / a_norm_H[:, None, None], b_HDC / b_norm_H[:, None, None]], dim=1)
    # With X X^T = L L^T, X^T J X and L^T J L have the same eigenvalues but zeros, J being what swaps A and B.
    left = _root(both).transpose(1, 2)
    swapped = left.roll(a_HDC.shape[1], dims=1)
    smallest_H = torch.linalg.eigvalsh(left.transpose(1, 2) @ swapped / 2)[:, 0]
    scaled_H: Tensor = a_norm_H * b_norm_H * (smallest_H - 1e-6).clamp(max=0)
    return scaled_H


def _root(matrix_HDC: Tensor) -> Tensor:
    """R_HDD with |R k| = |M^T k|."""
    values_HD, vectors_HDD = torch.linalg.eigh(matrix_HDC @ matrix_HDC.transpose(1, 2))
    root: Tensor = values_HD.clamp(min=0).sqrt()[..., None] * vectors_HDD.transpose(1, 2)
    return root


def _spectral_norm(matrix_HDC: Tensor) -> Tensor:
    largest: Tensor = torch.linalg.eigvalsh(matrix_HDC @ matrix_HDC.transpose(1, 2))[:, -1].clamp(min=0).sqrt()
    return largest
