"""What a step multiplies by and looks at: a model described without its modules, and one text's tables."""

from dataclasses import dataclass

from torch import Tensor

from epilogue.kernels.quant_linear import QuantWeight


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer: numbers in fp32, or the very same ones in bf16 or fp16, and finite; or codes."""

    weight: Tensor | QuantWeight
    """[F, C]; codes of one that ``quant_linear.parts.takes_few_rows``."""
    bias_F: Tensor | None = None


@dataclass(frozen=True)
class NormWeights:
    """LayerNorm, or without a mean the norm over the root mean square."""

    gain_C: Tensor
    bias_C: Tensor | None
    eps: float
    has_mean: bool


@dataclass(frozen=True)
class BlockWeights:
    """One layer."""

    norm_1: NormWeights
    norm_2: NormWeights
    q_norm: NormWeights | None
    """Over all heads' queries, or of a head's width and over each."""
    k_norm: NormWeights | None
    Wqkv: LinearWeights
    out_proj: LinearWeights
    up_proj: LinearWeights
    down_proj: LinearWeights


@dataclass(frozen=True)
class ModelWeights:
    """An MPT. Everything but the linear layers' weights is fp32; all of it is on the CPU and contiguous."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor on q.k."""
    clip: float
    """The fused projection is clamped to plus or minus this; infinite if it is not."""
    logit_factor: float
    token_embedding_VC: Tensor
    position_embedding_SC: Tensor | None
    slopes_H: Tensor
    """Zeros for a model without ALiBi."""
    blocks: tuple[BlockWeights, ...]
    norm_f: NormWeights
    head: LinearWeights


@dataclass(frozen=True)
class StepBounds:
    """``reach_decode.ScoreBounds`` of all layers."""

    root_LHDD: Tensor
    offset_LHD: Tensor
    error_LH: Tensor
    clip: float


@dataclass(frozen=True)
class TextTable:
    """One text's pages in all layers (``reach_decode.LayerTable``), and how many new tokens go behind them."""

    ids_LKP: Tensor
    """int64: those of the new tokens must be there."""
    norms_LKP: Tensor
    """fp32: changed by the call."""
    scores_LHP: Tensor
    """fp32: changed by the call, if there are bounds."""
    num_tokens: int
    """Tokens before the new ones."""
    num_new: int
