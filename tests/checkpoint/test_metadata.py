"""config.json as it is found in the world, and the tokenizer beside it."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from checkpoint.material import tiny_config, write_config
from epilogue.checkpoint import load_config, load_tokenizer
from epilogue.errors import CheckpointError
from epilogue.text import train_tokenizer


def storywriter() -> dict[str, Any]:
    """What the released StoryWriter's config.json says (its facts; written out here)."""
    attention = {
        "attn_type": "multihead_attention",
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_uses_sequence_id": False,
        "alibi": True,
        "alibi_bias_max": 16,
        "clip_qkv": 6,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    }
    initial = {
        "name": "kaiming_normal_",
        "fan_mode": "fan_in",
        "init_nonlinearity": "relu",
        "init_div_is_residual": True,
        "init_std": 0.02,
        "init_gain": 0,
        "emb_init_std": None,
        "emb_init_uniform_lim": None,
        "verbose": 0,
    }
    return {
        "architectures": ["MPTForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mpt.MPTConfig",
            "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM",
        },
        "model_type": "mpt",
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": 32,
        "expansion_ratio": 4,
        "max_seq_len": 65536,
        "vocab_size": 50432,
        "attn_config": attention,
        "init_config": initial,
        "emb_pdrop": 0,
        "resid_pdrop": 0,
        "embedding_fraction": 1.0,
        "learned_pos_emb": True,
        "logit_scale": None,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "init_device": "cpu",
        "tokenizer_name": "EleutherAI/gpt-neox-20b",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.28.1",
        "use_cache": False,
        "verbose": 0,
    }


def write(directory: Path, content: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def test_storywriters_config_loads_as_it_is(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, storywriter()))
    assert config.attn_config.clip_qkv == 6.0
    assert config.attn_config.alibi_bias_max == 16
    assert config.max_seq_len == 65536
    assert not config.has_position_embedding
    assert config.extra["tokenizer_name"] == "EleutherAI/gpt-neox-20b"


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        ("", {"n_head": 32}, "unknown key 'n_head'; the nearest known key is 'n_heads'"),
        ("attn_config", {"clip_kqv": 6}, "unknown key 'clip_kqv'"),
        ("attn_config", {"rope": True}, "rope = True"),
        ("attn_config", {"prefix_lm": True}, "prefix_lm = True"),
        ("attn_config", {"sliding_window_size": 128}, "sliding_window_size = 128"),
        ("ffn_config", {"ffn_type": "mb_dmoe"}, "ffn_type = 'mb_dmoe'"),
        ("", {"model_type": "llama"}, "'llama'"),
        ("", {"d_model": 4095}, "d_model 4095 does not divide"),
    ],
)
def test_what_is_not_run_is_named(tmp_path: Path, place: str, change: dict[str, Any], words: str) -> None:
    content = storywriter()
    target = content.setdefault(place, {}) if place else content
    target.update(change)
    with pytest.raises(CheckpointError) as caught:
        load_config(write(tmp_path, content))
    assert words in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


# Tokenizer


def make_tokenizer(directory: Path) -> Path:
    train_tokenizer(["a book of words"], vocab_size=260).save(directory / "tokenizer.json")
    return directory


def test_the_tokenizer_beside_the_weights(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tokenizer(tmp_path), tiny_config(vocab_size=260))
    assert tokenizer.decode(tokenizer.encode("a word")) == "a word"


def test_a_tokenizer_with_too_many_ids(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json has 260 ids and the model's vocab_size is 259; put"):
        load_tokenizer(make_tokenizer(tmp_path), tiny_config(vocab_size=259))


def test_the_tokenizer_that_the_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    make_tokenizer(cache)
    asked = []

    def hf_hub_download(repo_id: str, filename: str) -> str:
        asked.append((repo_id, filename))
        return str(cache / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    config = tiny_config(vocab_size=300, extra={"tokenizer_name": "EleutherAI/gpt-neox-20b"})
    write_config(tmp_path, config)
    assert load_tokenizer(tmp_path, load_config(tmp_path)).vocab_size == 260
    assert asked == [("EleutherAI/gpt-neox-20b", "tokenizer.json")]


def test_a_named_tokenizer_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hf_hub_download(repo_id: str, filename: str) -> str:
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    config = tiny_config(extra={"tokenizer_name": "EleutherAI/gpt-neox-20b"})
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json .*gpt-neox-20b.* put it into the directory"):
        load_tokenizer(tmp_path, config)


@pytest.mark.parametrize("extra", [{}, {"tokenizer_name": None}, {"tokenizer_name": ""}])
def test_no_tokenizer_at_all(tmp_path: Path, extra: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer.json and its config.json no tokenizer_name; put the"):
        load_tokenizer(tmp_path, tiny_config(extra=extra))
