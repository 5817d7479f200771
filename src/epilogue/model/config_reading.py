"""config.json to MPTConfig and back, strictly.

Every key is either a field of ours, a field whose one supported value is checked here, or bookkeeping that is kept as
it came. Anything else is an error that names the field: a switch that is ignored is a model that answers wrongly.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from epilogue.errors import CheckpointError
from epilogue.model.config import AttentionConfig, MPTConfig
from epilogue.model.quantization import KOBOLD_KEYS, read_quantization, write_quantization

_OWN = {f.name for f in fields(MPTConfig)} - {"extra", "attn_config", "quantization"}
_OWN_ATTENTION = {f.name for f in fields(AttentionConfig)}

# Fields that llm-foundry knows and we run at one value only: the values at which they have no effect.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "prefix_lm": (False,),
    "rope": (False,),
    "nope": (False,),
    "attn_uses_sequence_id": (False,),
    "sliding_window_size": (-1,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attn_temperature_tuning": (None,),
    "block_overrides": (None,),
    "fused_qkv": (True,),
    "kv_dim": (None,),
    "reuse_kv_layer_idx": (None,),
    "reuse_kv_x_layer_idx": (None,),
    "head_dim": (None,),
    "fc_type": ("torch", {"name": "torch"}),
    "ffn_type": ("mptmlp",),
    "ffn_hidden_size": (None,),
    "ffn_act_fn": (None, {"name": "gelu"}, {"name": "gelu", "approximate": "none"}),
    "moe_num_experts": (None, 1),
}
# Fields without effect on the arithmetic (rope_* only matter under rope; use_pad_tok_in_ffn only skips padding).
_INERT = {
    "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
    "init_device", "initializer_range", "is_encoder_decoder", "label2id", "max_position_embeddings",
    "_name_or_path", "name", "output_attentions", "output_hidden_states", "pad_token_id", "problem_type",
    "return_dict", "tokenizer_class", "tokenizer_name", "torch_dtype", "transformers_version", "use_pad_tok_in_ffn",
    "verbose", "epilogue_version", "training", "low_precision_layernorm",
    "activation_checkpointing_target", "activation_checkpointing_reentrant", "activation_checkpointing",
    "fuse_norm_attn_norm",
}  # fmt: skip
_QUANTIZATION = {"quantization_config", *KOBOLD_KEYS}
# Written anew on every save.
_FIXED = {"model_type": "mpt", "architectures": ["MPTForCausalLM"]}
_INERT_ATTENTION = {
    "model_type",
    "architectures",
    "rope_theta",
    "rope_impl",
    "rope_dail_config",
    "rope_hf_config",
}
_ALIASES = {"layer_norm_epsilon": "norm_eps"}
_WHOLE = {"d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "kv_n_heads"}
_SWITCHES = {
    "learned_pos_emb",
    "no_bias",
    "attention_bias",
    "tie_word_embeddings",
    "use_cache",
    "alibi",
    "qk_ln",
    "qk_gn",
}
_SHARES = {"resid_pdrop", "emb_pdrop", "attn_pdrop", "embedding_fraction"}
_POSITIVE = {"expansion_ratio", "norm_eps", "alibi_bias_max"}
_NUMBERS = {"clip_qkv", "softmax_scale", "logit_scale"}
_NULLABLE = {"kv_n_heads", "attention_bias", "clip_qkv", "softmax_scale", "logit_scale"}


def _check_kind(name: str, value: Any, where: str) -> None:
    """JSON lets any value stand anywhere; "false" in quotes would count as true."""
    if (value is None and name in _NULLABLE) or (name == "logit_scale" and value == "inv_sqrt_d_model"):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31
    is_share = is_number and 0 <= value <= 1
    for names, is_fit, wanted in (
        (_WHOLE, is_number and isinstance(value, int), "a whole number"),
        (_SWITCHES, isinstance(value, bool), "true or false"),
        (_SHARES, is_share, "a number from 0 to 1"),
        (_POSITIVE, is_number and value > 0, "a positive number"),
        (_NUMBERS, is_number, "a number"),
        ({"init_config"}, isinstance(value, Mapping | None), "a table or null"),
    ):
        if name in names and not is_fit:
            raise CheckpointError(f"{where} says {name} = {value!r}; wanted {wanted}")


def _check_supported(name: str, value: Any, where: str) -> None:
    if not any(value == allowed for allowed in _UNSUPPORTED[name]):
        wanted = " or ".join(repr(allowed) for allowed in _UNSUPPORTED[name])
        raise CheckpointError(f"{where} says {name} = {value!r}, which is not run here; only {wanted} is")


def _unknown(name: str, known: set[str], where: str) -> CheckpointError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; the nearest known key is {near[0]!r}" if near else ""
    return CheckpointError(f"{where} has the unknown key {name!r}{hint}; remove it if it does not change the model")


def _read_attention(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{where}: attn_config must be a table of settings, got {raw!r}")
    # Only transformers writes model_type here; it may leave out its defaults, and its default is ALiBi.
    own: dict[str, Any] = {"alibi": True} if "model_type" in raw else {}
    for name, value in raw.items():
        if name in _OWN_ATTENTION:
            _check_kind(name, value, where)
            own[name] = value
        elif name in _UNSUPPORTED:
            _check_supported(name, value, where)
        elif name not in _INERT_ATTENTION and name not in _INERT:
            raise _unknown(name, _OWN_ATTENTION | set(_UNSUPPORTED), where)
    # Some writers give kv_n_heads where it follows from attn_type; only the grouped form needs it.
    if own.get("attn_type", "multihead_attention") != "grouped_query_attention":
        own.pop("kv_n_heads", None)
    if own.get("clip_qkv") is not None:
        own["clip_qkv"] = float(own["clip_qkv"]) or None
    return own


def _check_nested(raw: Any, where: str) -> None:
    if not isinstance(raw, Mapping | None):
        raise CheckpointError(f"{where}: ffn_config must be a table of settings, got {raw!r}")
    for name, value in (raw or {}).items():
        if name not in _UNSUPPORTED:
            raise _unknown(name, set(_UNSUPPORTED), where)
        _check_supported(name, value, where)


def config_from_dict(raw: Mapping[str, Any], *, where: str = "config.json") -> MPTConfig:
    """Read the content of a config.json in MosaicML's or transformers' spelling.

    Args:
        raw: the parsed JSON object.
        where: what to call the file in messages.

    Raises:
        CheckpointError: not an MPT, an unknown key, a switch that is not run here, or an impossible value.
    """
    if raw.get("model_type", "mpt") != "mpt":
        raise CheckpointError(f"{where} describes a {raw['model_type']!r} model; this program runs 'mpt' only")
    own: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in raw.items():
        name = _ALIASES.get(key, key)
        if name == "attn_config":
            own[name] = _read_attention(value, where)
        elif name == "ffn_config":
            _check_nested(value, where)
        elif name in _OWN:
            _check_kind(name, value, where)
            own[name] = value
        elif name in _UNSUPPORTED:
            _check_supported(name, value, where)
        elif name in _INERT:
            extra[name] = value
        elif name not in _FIXED and name not in _QUANTIZATION:
            raise _unknown(key, _OWN | set(_UNSUPPORTED) | {"attn_config", "ffn_config"}, where)
    return _build(own | {"quantization": read_quantization(raw, where)}, extra, where)


def _build(own: dict[str, Any], extra: dict[str, Any], where: str) -> MPTConfig:
    norms = ("layernorm", "low_precision_layernorm", "rmsnorm", "low_precision_rmsnorm")
    if own.get("norm_type", norms[0]) not in norms:
        raise CheckpointError(f"{where} says norm_type = {own['norm_type']!r}; known are {', '.join(norms)}")
    attention = own.pop("attn_config", {})
    kinds = ("multihead_attention", "multiquery_attention", "grouped_query_attention")
    if attention.get("attn_type", kinds[0]) not in kinds:
        raise CheckpointError(f"{where} says attn_type = {attention['attn_type']!r}; known are {', '.join(kinds)}")
    try:
        return MPTConfig(attn_config=AttentionConfig(**attention), extra=extra, **own)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be run: {error}") from error


def config_to_dict(config: MPTConfig) -> dict[str, Any]:
    """The JSON object of a config.json, in MosaicML's spelling, such that ``config_from_dict`` gives it back."""
    own = {name: getattr(config, name) for name in sorted(_OWN)}
    own["init_config"] = None if config.init_config is None else dict(config.init_config)
    attention = {name: getattr(config.attn_config, name) for name in sorted(_OWN_ATTENTION)}
    if attention["kv_n_heads"] is None:
        del attention["kv_n_heads"]
    said = {} if config.quantization is None else {"quantization_config": write_quantization(config.quantization)}
    return _FIXED | dict(config.extra) | own | {"attn_config": attention} | said
