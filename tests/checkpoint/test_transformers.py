"""transformers' own MPT as the other side: what it saves we read, what we save it reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.material import tiny_config, tiny_state
from epilogue.checkpoint import load_checkpoint, save_checkpoint
from epilogue.model import AttentionConfig

transformers = pytest.importorskip("transformers")

IDS = torch.arange(17)[None] % 24


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


def foreign_model(*, clip_qkv: float | None, is_tied: bool) -> Any:
    attention = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": clip_qkv}
    config = transformers.MptConfig(
        d_model=16,
        n_heads=4,
        n_layers=2,
        vocab_size=24,
        max_seq_len=32,
        attn_config=attention,
        tie_word_embeddings=is_tied,
        initializer_range=0.5,
    )
    return transformers.MptForCausalLM(config).eval()


@pytest.mark.parametrize("clip_qkv", [None, 0.5])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
@torch.no_grad()
def test_what_transformers_saves_loads(
    tmp_path: Path, clip_qkv: float | None, max_shard_size: str, *, is_tied: bool
) -> None:
    theirs = foreign_model(clip_qkv=clip_qkv, is_tied=is_tied)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    ours = load_checkpoint(tmp_path)
    assert ours.config.attn_config.clip_qkv == clip_qkv
    assert ours.config.tie_word_embeddings == is_tied
    torch.testing.assert_close(ours.model(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_its_state_dict_with_the_tied_head_loads(tmp_path: Path) -> None:
    theirs = foreign_model(clip_qkv=None, is_tied=True)
    theirs.config.save_pretrained(tmp_path)
    assert "lm_head.weight" in theirs.state_dict()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(load_checkpoint(tmp_path).model(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
@pytest.mark.parametrize("clip_qkv", [None, 6.0])
@torch.no_grad()
def test_transformers_loads_what_we_save(tmp_path: Path, clip_qkv: float | None, max_shard_bytes: int) -> None:
    attention = AttentionConfig(alibi=True, alibi_bias_max=8.0, clip_qkv=clip_qkv)
    config = replace(tiny_config(expansion_ratio=4.0, attn_config=attention), extra={"eos_token_id": 0})
    save_checkpoint(tmp_path, tiny_state(config), config, dtype=torch.float32, max_shard_bytes=max_shard_bytes)
    theirs = transformers.MptForCausalLM.from_pretrained(tmp_path).eval()
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.use_cache is True
    torch.testing.assert_close(load_checkpoint(tmp_path).model(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)


def test_the_stored_dtype_is_told(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, tiny_state(tiny_config(), torch.bfloat16), tiny_config(expansion_ratio=2))
    assert transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
