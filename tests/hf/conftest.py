"""A small checkpoint as MosaicML published theirs: config.json in their words, weights in a .bin file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from epilogue.model import MPT, config_from_dict

transformers = pytest.importorskip("transformers")

Publish = Callable[..., Path]

CONFIG: dict[str, Any] = {
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
    "d_model": 32,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_", "fan_mode": "fan_in", "init_nonlinearity": "relu", "init_std": 0.02},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 64,
    "model_type": "mpt",
    "n_heads": 4,
    "n_layers": 2,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 61,
}
HOSTILE = "raise SystemExit('code of the checkpoint was run')\n"


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Writes the checkpoint; keywords change config.json, those in ``attention`` its attn_config."""

    def write(name: str = "storywriter", *, attention: dict[str, Any] | None = None, **changes: Any) -> Path:
        raw = CONFIG | changes | {"attn_config": CONFIG["attn_config"] | (attention or {})}
        model = MPT(config_from_dict(raw))
        model.init_weights(std=0.5)  # large enough that a clamp at 6 bites
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(raw))
        (directory / "configuration_mpt.py").write_text(HOSTILE)
        (directory / "modeling_mpt.py").write_text(HOSTILE)
        (directory / "generation_config.json").write_text('{"eos_token_id": 0, "use_cache": false}')
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
        return directory

    return write


@pytest.fixture
def storywriter(publish: Publish) -> Path:
    """alibi_bias_max 16 and clip_qkv 6, as an int."""
    return publish()
