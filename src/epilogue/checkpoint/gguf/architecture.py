"""An MPT in llama.cpp's words: metadata under ``mpt.``, and its names of tensors.

Source: llama.cpp's src/models/mpt.cpp (what its graph computes) and conversion of MPTForCausalLM (what it is told).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from epilogue.checkpoint.gguf.file import GGUFFile
from epilogue.errors import CheckpointError
from epilogue.model import AttentionConfig, MPTConfig

ARCHITECTURE = "mpt"
_LARGEST = 1 << 24
_OUTER = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.norm_f": "output_norm",
    "lm_head": "output",
}
_OF_A_BLOCK = {
    "norm_1": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.q_ln": "attn_q_norm",
    "attn.k_ln": "attn_k_norm",
    "attn.out_proj": "attn_output",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
_OWN_OUTER = {foreign: own for own, foreign in _OUTER.items()}
_OWN_OF_A_BLOCK = {foreign: own for own, foreign in _OF_A_BLOCK.items()}


def gguf_name(name: str) -> str:
    """llama.cpp's name of one of our tensors."""
    module, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)", module):
        return f"blk.{match[1]}.{_OF_A_BLOCK[match[2]]}.{leaf}"
    return f"{_OUTER[module]}.{leaf}"


def name_from_gguf(name: str) -> str:
    """Our name of one of llama.cpp's tensors; what we have no name for keeps its own."""
    module, _, leaf = name.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
    if match and match[2] in _OWN_OF_A_BLOCK:
        return f"transformer.blocks.{match[1]}.{_OWN_OF_A_BLOCK[match[2]]}.{leaf}"
    return f"{_OWN_OUTER[module]}.{leaf}" if module in _OWN_OUTER else name


def check_carried(config: MPTConfig) -> None:
    """Refuse what llama.cpp's MPT does not compute.

    Raises:
        CheckpointError: names the first such switch.
    """
    attention = config.attn_config
    for name, value, is_carried in (
        ("norm_type", config.norm_type, "rms" not in config.norm_type),
        ("qk_gn", attention.qk_gn, not attention.qk_gn),
        # llama.cpp has names for these norms, and ends with a failed assertion on them (of 2026-10).
        ("qk_ln", attention.qk_ln, not attention.qk_ln),
        ("softmax_scale", attention.softmax_scale, config.softmax_scale == config.head_dim**-0.5),
        ("logit_scale", config.logit_scale, config.logit_factor in (None, 1.0)),
    ):
        if not is_carried:
            raise CheckpointError(
                f"the model has {name} = {value!r}, which llama.cpp does not compute for an MPT; keep it in the "
                f"Hugging Face layout"
            )


def config_to_metadata(config: MPTConfig) -> dict[str, int | float]:
    """The keys under ``mpt.`` and the values llama.cpp reads there; whole numbers are uint32, others float32."""
    attention = config.attn_config
    metadata: dict[str, int | float] = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_width,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_n_heads,
        "attention.layer_norm_epsilon": float(config.norm_eps),
        "attention.max_alibi_bias": float(attention.alibi_bias_max if attention.alibi else 0),
    }
    if attention.clip_qkv is not None:
        metadata["attention.clamp_kqv"] = float(attention.clip_qkv)
    return {f"{ARCHITECTURE}.{key}": value for key, value in metadata.items()}


def config_from_metadata(file: GGUFFile) -> MPTConfig:
    """The config that a file's metadata and its table of tensors amount to.

    Raises:
        CheckpointError: not an MPT, a key missing or absurd, or sizes that do not fit together.
    """
    found = file.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise CheckpointError(f"{file.path} holds a {found!r} model; this program runs {ARCHITECTURE!r} only")
    keys = _Keys(file.metadata, str(file.path))
    d_model, n_heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    n_layers = keys.whole("block_count", most=len(file.tensors))
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path} has no token_embd.weight; it may be one part of a split file, join them")
    kv_n_heads = keys.whole("attention.head_count_kv", default=n_heads)
    try:
        return MPTConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_layers=n_layers,
            expansion_ratio=_ratio(keys.whole("feed_forward_length"), d_model),
            max_seq_len=keys.whole("context_length"),
            vocab_size=embedding.shape[0],
            learned_pos_emb="position_embd.weight" in file.tensors,
            no_bias="output_norm.bias" not in file.tensors,
            attention_bias=_attention_bias(file.tensors),
            norm_type="layernorm",
            norm_eps=keys.number("attention.layer_norm_epsilon"),
            tie_word_embeddings="output.weight" not in file.tensors,
            attn_config=_attention(keys, file.tensors, n_heads, kv_n_heads),
            extra=_extra(file.metadata),
        )
    except ValueError as error:
        raise CheckpointError(f"{file.path} cannot be run: {error}") from error


def _attention(keys: "_Keys", tensors: Collection[str], n_heads: int, kv_n_heads: int) -> AttentionConfig:
    alibi_bias_max = keys.number("attention.max_alibi_bias", default=0.0)
    is_grouped = kv_n_heads != n_heads
    return AttentionConfig(
        attn_type="grouped_query_attention" if is_grouped else "multihead_attention",
        kv_n_heads=kv_n_heads if is_grouped else None,
        qk_ln="blk.0.attn_q_norm.weight" in tensors,
        clip_qkv=keys.number("attention.clamp_kqv", default=0.0) or None,
        alibi=alibi_bias_max > 0,
        alibi_bias_max=alibi_bias_max or 8,
    )


def _attention_bias(tensors: Collection[str]) -> bool | None:
    """None where the fused projection does as all others do."""
    has_bias = "blk.0.attn_qkv.bias" in tensors
    return None if has_bias == ("output_norm.bias" in tensors) else has_bias


def _ratio(ffn_width: int, d_model: int) -> float:
    return ffn_width // d_model if ffn_width % d_model == 0 else ffn_width / d_model


def _extra(metadata: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "name": "general.name",
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
    }
    return {name: metadata[key] for name, key in own.items() if key in metadata}


class _Keys:
    """The metadata under ``mpt.``, checked as they are read."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata = metadata
        self._where = where

    def whole(self, key: str, *, default: int | None = None, most: int = _LARGEST) -> int:
        value = self._metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self._wrong(key, value, f"a whole number from 1 to {most:,}")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        value = self._metadata.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, float) or not 0 <= value < 2**31:  # also refuses what is not a number
            raise self._wrong(key, value, "a number from 0 on")
        return float(f"{value:.7g}")  # float32 in the file: 1e-05, not 9.999999747378752e-06

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self._where} says {ARCHITECTURE}.{key} = {value!r}; wanted {wanted}")
