"""MPTConfig: the architecture in the checkpoint's own words, and the named sizes.

The field names are MosaicML's (config.json of every mosaicml/mpt-* repository). Reading a config.json is strict: a
field this program does not run is refused by name, never ignored (``epilogue.model.config_reading``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from epilogue.model.quantization import Quantization

NormType = Literal["layernorm", "low_precision_layernorm", "rmsnorm", "low_precision_rmsnorm"]
AttentionType = Literal["multihead_attention", "multiquery_attention", "grouped_query_attention"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The ``attn_config`` part of a config.json."""

    attn_type: AttentionType = "multihead_attention"
    """Whether every head has keys and values of its own, all share one set, or groups share."""
    kv_n_heads: int | None = None
    """Key/value heads; only with grouped_query_attention."""
    attn_impl: str = "torch"
    """Kept for round trips (torch, flash, triton, flex); the kernel is chosen by the device it runs on."""
    attn_pdrop: float = 0.0
    """Dropout of attention weights in training; training with anything but 0 is refused."""
    qk_ln: bool = False
    """LayerNorm over all heads' queries and keys, after the clamp."""
    qk_gn: bool = False
    """The same norm per head."""
    clip_qkv: float | None = None
    """The fused projection is clamped to plus or minus this, before the split."""
    softmax_scale: float | None = None
    """Factor on q.k; 1/sqrt(head_dim) if None."""
    alibi: bool = False
    """Linear biases by distance instead of learned positions."""
    alibi_bias_max: float = 8
    """The flattest head's slope is 2**-alibi_bias_max."""

    def __post_init__(self) -> None:
        if self.qk_ln and self.qk_gn:
            raise ValueError("qk_ln and qk_gn are both true; choose one")
        if self.clip_qkv is not None and self.clip_qkv <= 0:
            raise ValueError(f"clip_qkv must be positive or None, got {self.clip_qkv}")
        if (self.kv_n_heads is None) == (self.attn_type == "grouped_query_attention"):
            raise ValueError(f"kv_n_heads is {self.kv_n_heads} with attn_type {self.attn_type}")


@dataclass(frozen=True, kw_only=True)
class MPTConfig:
    """Everything that decides an MPT's shape and arithmetic.

    Raises:
        ValueError: sizes that do not fit together.
    """

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    expansion_ratio: float = 4
    """Feed-forward width over d_model; the product must be whole."""
    max_seq_len: int = 2048
    """Tokens a training sample had. ALiBi runs past it; learned positions do not."""
    vocab_size: int = 50368
    resid_pdrop: float = 0.0
    emb_pdrop: float = 0.0
    learned_pos_emb: bool = True
    """Only in effect without ALiBi (the released ALiBi configs say true and mean nothing by it)."""
    attn_config: AttentionConfig = field(default_factory=AttentionConfig)
    logit_scale: float | Literal["inv_sqrt_d_model"] | None = None
    no_bias: bool = False
    """True removes every bias, the norms' included."""
    attention_bias: bool | None = None
    """Overrides no_bias for the fused query/key/value projection."""
    embedding_fraction: float = 1.0
    """Share of the embedding's gradient that is kept in training; no effect on values."""
    norm_type: NormType = "low_precision_layernorm"
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    use_cache: bool = False
    """Kept for round trips; generation here always keeps a cache."""
    init_config: Mapping[str, Any] | None = None
    """How the checkpoint's makers drew its first weights; kept for round trips."""
    quantization: Quantization | None = None
    """How the blocks' linear layers are quantised; None if they are not."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of config.json that say nothing about the arithmetic (names, versions, ids); kept for round trips."""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} does not divide by n_heads {self.n_heads}")
        if self.n_heads % self.kv_n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide by kv_n_heads {self.kv_n_heads}")
        if (self.d_model * self.expansion_ratio) % 1:
            raise ValueError(f"d_model {self.d_model} times expansion_ratio {self.expansion_ratio} is not whole")

    @property
    def head_dim(self) -> int:
        """Width of a head, D."""
        return self.d_model // self.n_heads

    @property
    def kv_n_heads(self) -> int:
        """Heads of keys and values, K."""
        if self.attn_config.attn_type == "multiquery_attention":
            return 1
        return self.attn_config.kv_n_heads or self.n_heads

    @property
    def qkv_width(self) -> int:
        """Output width of the fused projection."""
        return self.d_model + 2 * self.kv_n_heads * self.head_dim

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward, F."""
        return int(self.d_model * self.expansion_ratio)

    @property
    def has_position_embedding(self) -> bool:
        """Whether learned positions are in effect."""
        return self.learned_pos_emb and not self.attn_config.alibi

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the fused projection has a bias."""
        return not self.no_bias if self.attention_bias is None else self.attention_bias

    @property
    def softmax_scale(self) -> float:
        """Factor on q.k in effect."""
        scale = self.attn_config.softmax_scale
        return self.head_dim**-0.5 if scale is None else scale

    @property
    def logit_factor(self) -> float | None:
        """Factor on the logits in effect."""
        if self.logit_scale is None:
            return None
        return float(self.d_model**-0.5 if self.logit_scale == "inv_sqrt_d_model" else self.logit_scale)


def _alibi(bias_max: float = 8, **switches: Any) -> AttentionConfig:
    return AttentionConfig(alibi=True, alibi_bias_max=bias_max, **switches)


_TINY = MPTConfig(d_model=64, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=512, no_bias=True, attn_config=_alibi())
_MPT_7B = MPTConfig(
    d_model=4096,
    n_heads=32,
    n_layers=32,
    max_seq_len=2048,
    vocab_size=50432,
    no_bias=True,
    attn_config=_alibi(),
)

NAMED_SIZES: Mapping[str, MPTConfig] = MappingProxyType(
    {
        "tiny": _TINY,
        "tiny-3-heads": replace(_TINY, d_model=48, n_heads=3),
        "epilogue-tiny": replace(_MPT_7B, d_model=512, n_heads=8, n_layers=6, max_seq_len=65536, vocab_size=8192),
        "mpt-7b": _MPT_7B,
        "mpt-7b-storywriter": replace(_MPT_7B, max_seq_len=65536, attn_config=_alibi(16, clip_qkv=6.0)),
        "mpt-30b": replace(_MPT_7B, d_model=7168, n_heads=64, n_layers=48, max_seq_len=8192),
    }
)
"""Architectures by name: test sizes, the bundled model's, and the released family's."""
