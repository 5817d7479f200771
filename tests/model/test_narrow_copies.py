"""fp32 weights that are bf16 or fp16 numbers, read as those: the same tokens, and never stale."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from epilogue.checkpoint import load_checkpoint, load_tokenizer
from epilogue.kernels.extension import native_is_available
from epilogue.model import MPT, AttentionConfig, MPTConfig, Quantization

needs_extension = pytest.mark.skipif(not native_is_available(), reason="the C++ extension is not there")


def make(*, is_narrow: bool, is_tied: bool = True, dtype: torch.dtype = torch.bfloat16) -> MPT:
    config = MPTConfig(
        d_model=48, n_heads=3, n_layers=2, vocab_size=61, max_seq_len=32, no_bias=True, tie_word_embeddings=is_tied,
        attn_config=AttentionConfig(alibi=True),
    )  # fmt: skip
    model = MPT(config).eval()
    model.init_weights(std=0.3, seed=1)
    if is_narrow:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.to(dtype))
    return model


@needs_extension
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_logits_are_the_same(is_tied: bool, dtype: torch.dtype) -> None:
    model, ids = make(is_narrow=True, is_tied=is_tied, dtype=dtype), torch.arange(3)[None]
    before = model(ids)
    model.keep_copies(coded_head=False)
    assert all(module.narrow is not None for module in model.modules() if hasattr(module, "narrow"))
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)


def test_weights_that_are_wider_are_not_copied() -> None:
    model = make(is_narrow=False)
    model.keep_copies(coded_head=False)
    assert all(module.narrow is None for module in model.modules() if hasattr(module, "narrow"))


@needs_extension
@torch.no_grad()
def test_weights_that_change_are_read_as_they_are() -> None:
    model, ids = make(is_narrow=True), torch.arange(3)[None]
    model.keep_copies(coded_head=False)
    for weight in model.parameters():
        weight.mul_(1.37)
    changed = model(ids)
    model.keep_copies(coded_head=False)
    torch.testing.assert_close(model(ids), changed, rtol=0, atol=0)


@torch.no_grad()
def test_a_coded_head_says_nearly_the_same() -> None:
    model, ids = make(is_narrow=False), torch.arange(20)[None]
    exact = model(ids)
    model.keep_copies(coded_head=True)
    coded = model(ids)
    # A code is off by half a step at most, and there are 127 to the largest weight.
    assert 0 < float((coded - exact).square().mean()) < (1 / 127) ** 2 * float(exact.square().mean())
    model.transformer.wte.weight.mul_(1.5)
    changed = model(ids)
    model.keep_copies(coded_head=False)
    torch.testing.assert_close(model(ids), changed, rtol=0, atol=0)


@torch.no_grad()
def test_only_a_quantised_models_head_is_coded_unasked() -> None:
    model = make(is_narrow=False)
    model.keep_copies()
    assert model.coded_head is None
    model.config = replace(model.config, quantization=Quantization(bits=4, group_size=16))
    model.keep_copies()
    assert model.coded_head is not None
    model.keep_copies(coded_head=False)
    assert model.coded_head is None


@torch.no_grad()
def test_a_coded_head_costs_a_reader_nothing() -> None:
    """docs/numerics.md has the figures; here 600 tokens of the story that comes along."""
    folder = Path(str(files("epilogue"))) / "bundled"
    model = load_checkpoint(folder / "epilogue-tiny", dtype=torch.float32).model.eval()
    text = (folder / "a-life-in-being.txt").read_text(encoding="utf-8")
    ids = torch.tensor([load_tokenizer(folder / "epilogue-tiny", model.config).encode(text)[:600]])
    losses = []
    for coded_head in (False, True):
        model.keep_copies(coded_head=coded_head)
        losses.append(float(F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])))
    assert abs(losses[1] / losses[0] - 1) < 1e-3  # 4 bits in the other layers may cost fifteen times that
