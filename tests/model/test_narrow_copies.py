"""fp32 weights that are bf16 or fp16 numbers, read as those: the same tokens, and never stale."""

import pytest
import torch

from epilogue.kernels.extension import native_is_available
from epilogue.model import MPT, AttentionConfig, MPTConfig

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
    model.keep_narrow_copies()
    assert all(module.narrow is not None for module in model.modules() if hasattr(module, "narrow"))
    torch.testing.assert_close(model(ids), before, rtol=1e-5, atol=1e-5)


def test_weights_that_are_wider_are_not_copied() -> None:
    model = make(is_narrow=False)
    model.keep_narrow_copies()
    assert all(module.narrow is None for module in model.modules() if hasattr(module, "narrow"))


@needs_extension
@torch.no_grad()
def test_weights_that_change_are_read_as_they_are() -> None:
    model, ids = make(is_narrow=True), torch.arange(3)[None]
    model.keep_narrow_copies()
    for weight in model.parameters():
        weight.mul_(1.37)
    changed = model(ids)
    model.keep_narrow_copies()
    torch.testing.assert_close(model(ids), changed, rtol=0, atol=0)
