"""Documents packed into one sequence are the documents one by one: values and gradients, whatever the switches."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from epilogue.model import MPT, AttentionConfig, MPTConfig

LENGTHS = (1, 63, 300, 7)  # more than a tile of queries together, and a seam inside one
BASE = MPTConfig(
    d_model=24,
    n_heads=3,
    n_layers=2,
    vocab_size=50,
    max_seq_len=400,
    no_bias=True,
    attn_config=AttentionConfig(alibi=True),
)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ALiBi": {},
    "learned positions": {"alibi": False},
    "clamp and norms": {"clip_qkv": 0.5, "qk_ln": True},
    "grouped heads": {"attn_type": "multiquery_attention", "alibi_bias_max": 16},
}


def busy_model(switches: dict[str, Any]) -> MPT:
    model = MPT(replace(BASE, attn_config=replace(BASE.attn_config, **switches)))
    model.init_weights(std=0.3)
    return model


def gradients(model: MPT, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_is_separate(name: str) -> None:
    model = busy_model(ARCHITECTURES[name])
    texts = [torch.randint(BASE.vocab_size, (1, length)) for length in LENGTHS]
    starts = [torch.full((1, length), sum(LENGTHS[:i])) for i, length in enumerate(LENGTHS)]
    packed = model(torch.cat(texts, 1), document_start_BT=torch.cat(starts, 1))
    apart = torch.cat([model(text) for text in texts], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-5 * apart.abs().max().item())

    weights = torch.randn_like(apart)
    expected = gradients(model, (apart * weights).sum())
    for parameter, gradient in gradients(model, (packed * weights).sum()).items():
        tolerance = 1e-4 * expected[parameter].abs().max().item()
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=tolerance)


def test_rows_may_be_packed_differently() -> None:
    model = busy_model({})
    ids = torch.randint(BASE.vocab_size, (2, 70))
    starts = torch.tensor([[0] * 30 + [30] * 40, [0] * 69 + [69]])
    packed = model(ids, document_start_BT=starts)
    for row, seam in ((0, 30), (1, 69)):
        apart = torch.cat([model(ids[row : row + 1, :seam]), model(ids[row : row + 1, seam:])], 1)
        torch.testing.assert_close(packed[row : row + 1], apart, rtol=1e-4, atol=1e-5 * apart.abs().max().item())


def test_two_runs_are_the_same_bits() -> None:
    """Five steps of training, twice, packed rows among them."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = busy_model({"clip_qkv": 0.5}).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.randint(BASE.vocab_size, (2, 71))
        starts = torch.tensor([[0] * 30 + [30] * 40, [0] * 70])
        losses = []
        for _ in range(5):
            loss = model.loss(ids[:, :-1], ids[:, 1:], starts)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        runs.append((losses, model(ids)))
    assert runs[0][0] == runs[1][0]
    assert runs[0][0][-1] < runs[0][0][0]
    assert torch.equal(runs[0][1], runs[1][1])
