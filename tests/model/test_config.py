"""MPTConfig refuses sizes that do not fit together and derives what follows from them."""

from typing import Any

import pytest

from epilogue.model import NAMED_SIZES, AttentionConfig, MPTConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 65, "n_heads": 4}, "d_model 65 does not divide by n_heads 4"),
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"d_model": 30, "n_heads": 2, "expansion_ratio": 1.25}, "is not whole"),
    ],
)
def test_sizes_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPTConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"qk_ln": True, "qk_gn": True}, "choose one"),
        ({"clip_qkv": -6.0}, "clip_qkv must be positive"),
        ({"attn_type": "grouped_query_attention"}, "kv_n_heads is None"),
        ({"kv_n_heads": 2}, "kv_n_heads is 2 with attn_type multihead_attention"),
    ],
)
def test_attention_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**settings)


def test_heads_must_divide_by_the_heads_they_share() -> None:
    grouped = AttentionConfig(attn_type="grouped_query_attention", kv_n_heads=3)
    with pytest.raises(ValueError, match="n_heads 16 does not divide by kv_n_heads 3"):
        MPTConfig(attn_config=grouped)


def test_alibi_switches_learned_positions_off() -> None:
    assert MPTConfig().has_position_embedding
    assert not MPTConfig(attn_config=AttentionConfig(alibi=True)).has_position_embedding


def test_storywriter_is_what_was_released() -> None:
    config = NAMED_SIZES["mpt-7b-storywriter"]
    assert (config.d_model, config.n_heads, config.n_layers) == (4096, 32, 32)
    assert (config.max_seq_len, config.vocab_size, config.no_bias) == (65536, 50432, True)
    assert (config.attn_config.alibi_bias_max, config.attn_config.clip_qkv) == (16, 6)
