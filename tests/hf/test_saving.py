"""save_pretrained writes what our own loader and plain transformers read, and nothing is lost on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import epilogue.hf  # noqa: F401 - registers
from epilogue.checkpoint import load_checkpoint, read_tensors

IDS = torch.arange(40)[None] * 7 % 61


def opened(directory: Path, **settings: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings)


@pytest.mark.parametrize("is_tied", [True, False])
@torch.no_grad()
def test_names_and_values_stay(publish, tmp_path: Path, is_tied: bool) -> None:
    source = publish(tie_word_embeddings=is_tied)
    model = opened(source)
    model.save_pretrained(tmp_path / "saved")
    before, after = dict(read_tensors(source)), dict(read_tensors(tmp_path / "saved"))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved["model_type"], saved["architectures"]) == ("mpt", ["MPTForCausalLM"])
    assert "auto_map" not in saved, "the code it points at is not there"
    ours = load_checkpoint(tmp_path / "saved")
    stored = load_checkpoint(source).config
    assert ours.config.attn_config == stored.attn_config
    torch.testing.assert_close(ours.model(IDS), model(IDS).logits)
    torch.testing.assert_close(opened(tmp_path / "saved")(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_plain_transformers_reads_it_where_it_can(publish, tmp_path: Path) -> None:
    """A bias max of 8 is the only one it runs; the clamp must be a float there."""
    model = opened(publish(attention={"alibi_bias_max": 8, "clip_qkv": 6}))
    model.save_pretrained(tmp_path / "saved")
    plain = transformers.MptForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    exact = load_checkpoint(tmp_path / "saved", dtype=torch.float64).model(IDS)
    tolerance = 1e-5 * exact.abs().max().item()
    torch.testing.assert_close(plain(IDS).logits.double(), exact, rtol=1e-5, atol=tolerance)
    torch.testing.assert_close(model(IDS).logits.double(), exact, rtol=1e-5, atol=tolerance)


@torch.no_grad()
def test_what_plain_transformers_saves_is_read(tmp_path: Path) -> None:
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=61, max_seq_len=64)
    plain = transformers.MptForCausalLM(config).eval()
    plain.save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(opened(tmp_path / "plain")(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
