"""Terms that wait for the norm that follows: the same bits as blocks that add at once, dense and quantised."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from epilogue.model import MPT, AttentionConfig, MPTConfig
from epilogue.model.linear import QuantLinear
from epilogue.model.quantization import Quantization
from epilogue.model.stream import Stream

CONFIG = MPTConfig(
    d_model=32, n_heads=2, n_layers=3, vocab_size=40, no_bias=True, attn_config=AttentionConfig(alibi=True)
)


@pytest.mark.parametrize("norm_type", ["low_precision_layernorm", "rmsnorm"])
@pytest.mark.parametrize("is_quantised", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_get_the_bits_of_blocks_that_add_at_once(
    norm_type: Any, is_quantised: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    kind = Quantization(bits=8, group_size=32) if is_quantised else None
    model = MPT(replace(CONFIG, norm_type=norm_type, quantization=kind)).to(dtype).eval()
    for layer in model.modules():
        if isinstance(layer, QuantLinear):
            layer.codes_OI.random_(256)
            layer.scales_OG.fill_(0.002)
    transformer, ids_BT = model.transformer, torch.randint(40, (1, 7))
    seen: list[bool] = []
    hook = transformer.blocks[1].register_forward_hook(lambda _, x, out: seen.append(isinstance(out, Stream)))
    with torch.no_grad():
        few_BTC = transformer(ids_BT)
        hook.remove()
        x_BTC = transformer.wte(ids_BT)
        for block in transformer.blocks:
            x_BTC = block(x_BTC, None)
        assert torch.equal(few_BTC, transformer.norm_f(x_BTC))
    assert seen == [True]


def test_what_learns_or_has_many_rows_on_a_cpu_goes_as_tensors() -> None:
    model = MPT(CONFIG).eval()
    seen: list[bool] = []
    model.transformer.blocks[1].register_forward_hook(lambda _, x, out: seen.append(isinstance(out, torch.Tensor)))
    model(torch.zeros(1, 4, dtype=torch.int64))
    with torch.no_grad():
        model(torch.zeros(1, 40, dtype=torch.int64))
        model.train()(torch.zeros(1, 4, dtype=torch.int64))
    assert seen == [True] * 3
