"""Reading config.json: the released files as they are, and a named refusal of everything else."""

import json
from typing import Any

import pytest
from transformers import MptConfig

from epilogue.errors import CheckpointError
from epilogue.model import NAMED_SIZES, AttentionConfig, MPTConfig, config_from_dict, config_to_dict

# The fields of mosaicml/mpt-7b-storywriter's config.json, integer clip_qkv and inert learned_pos_emb included.
STORYWRITER: dict[str, Any] = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 16,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": 6,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "auto_map": {
        "AutoConfig": "configuration_mpt.MPTConfig",
        "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
    },
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {
        "emb_init_std": None,
        "emb_init_uniform_lim": None,
        "fan_mode": "fan_in",
        "init_div_is_residual": True,
        "init_gain": 0,
        "init_nonlinearity": "relu",
        "init_std": 0.02,
        "name": "kaiming_normal_",
        "verbose": 0,
    },
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 65536,
    "model_type": "mpt",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 50432,
}


def test_storywriters_own_file_is_read() -> None:
    config = config_from_dict(STORYWRITER)
    named = NAMED_SIZES["mpt-7b-storywriter"]
    for field in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "no_bias", "attn_config"):
        assert getattr(config, field) == getattr(named, field)
    assert isinstance(config.attn_config.clip_qkv, float)
    assert not config.has_position_embedding


def test_nothing_that_was_read_is_lost_on_writing() -> None:
    written = config_to_dict(config_from_dict(STORYWRITER))
    for key, value in STORYWRITER.items():
        if key != "attn_config":
            assert written[key] == value
    for key, value in STORYWRITER["attn_config"].items():
        if key not in ("attn_uses_sequence_id", "prefix_lm"):  # switches that are not run, at their only value
            assert written["attn_config"][key] == value


ROUND_TRIPS = [
    *NAMED_SIZES.values(),
    config_from_dict(STORYWRITER),
    MPTConfig(logit_scale="inv_sqrt_d_model", embedding_fraction=0.1, tie_word_embeddings=False, attention_bias=True),
    MPTConfig(attn_config=AttentionConfig(attn_type="grouped_query_attention", kv_n_heads=4, qk_gn=True)),
    MPTConfig(attn_config=AttentionConfig(attn_type="multiquery_attention", softmax_scale=0.1), norm_type="rmsnorm"),
]


@pytest.mark.parametrize("config", ROUND_TRIPS)
def test_round_trip_through_json(config: MPTConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_transformers_own_config_is_read() -> None:
    config = config_from_dict(MptConfig(d_model=96, n_heads=3, n_layers=2, vocab_size=100).to_dict())
    assert (config.d_model, config.n_heads, config.n_layers, config.vocab_size) == (96, 3, 2, 100)
    assert config.attn_config.alibi


UNSUPPORTED = {
    "attn_config": {
        "prefix_lm": True, "rope": True, "nope": True, "attn_uses_sequence_id": True, "sliding_window_size": 4096,
        "attn_logit_softcapping": 30.0, "attn_temperature_tuning": {"attn_scale": 0.1}, "fused_qkv": False,
        "kv_dim": 64, "reuse_kv_layer_idx": 1, "reuse_kv_x_layer_idx": 1,
    },
    "ffn_config": {
        "ffn_type": "mptglu", "ffn_hidden_size": 100, "ffn_act_fn": {"name": "gelu", "approximate": "tanh"},
        "moe_num_experts": 8, "fc_type": "te",
    },
}  # fmt: skip
UNSUPPORTED_ON_TOP = {
    "final_logit_softcapping": 30.0,
    "block_overrides": {"order": []},
    "head_dim": 64,
    "fc_type": "te",
}


@pytest.mark.parametrize(
    ("key", "raw"),
    [(key, {table: {key: value}}) for table, keys in UNSUPPORTED.items() for key, value in keys.items()]
    + [(key, {key: value}) for key, value in UNSUPPORTED_ON_TOP.items()],
)
def test_a_switch_that_is_not_run_is_refused_by_name(key: str, raw: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"book/config.json says {key} = .*only .* is"):
        config_from_dict(raw, where="book/config.json")


@pytest.mark.parametrize(
    ("raw", "unknown", "nearest"),
    [
        ({"d_modle": 64}, "d_modle", "d_model"),
        ({"attn_config": {"alibi_bias_maxx": 8}}, "alibi_bias_maxx", "alibi_bias_max"),
        ({"ffn_config": {"ffn_typ": "mptmlp"}}, "ffn_typ", "ffn_type"),
        ({"atn_config": {}}, "atn_config", "attn_config"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(raw: dict[str, Any], unknown: str, nearest: str) -> None:
    with pytest.raises(CheckpointError, match=f"unknown key '{unknown}'; the nearest known key is '{nearest}'"):
        config_from_dict(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "llama"}, "describes a 'llama' model"),
        ({"norm_type": "batchnorm"}, "norm_type = 'batchnorm'; known are layernorm"),
        ({"attn_config": {"attn_type": "latent"}}, "attn_type = 'latent'; known are"),
        ({"attn_config": "alibi"}, "attn_config must be a table"),
        ({"ffn_config": "mptmlp"}, "ffn_config must be a table"),
        ({"n_heads": 5}, "does not divide"),
        ({"d_model": "wide"}, "wanted a whole number"),
    ],
)
def test_an_impossible_value_is_a_checkpoint_error(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_dict(raw)


@pytest.mark.parametrize("clip", [None, 0])
def test_no_clamp_in_either_spelling(clip: Any) -> None:
    assert config_from_dict({"attn_config": {"clip_qkv": clip}}).attn_config.clip_qkv is None
