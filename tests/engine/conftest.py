"""Tiny models with weights large enough that every token matters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from epilogue.model import MPT, AttentionConfig, MPTConfig

MakeMPT = Callable[..., MPT]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "one head": {"n_heads": 1},
    "three heads": {"n_heads": 3},
    "eight heads": {"n_heads": 8},
    "clamped": {"attn_config": {"clip_qkv": 0.5}},
    "grouped queries": {"n_heads": 8, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}},
    "multi-query": {"attn_config": {"attn_type": "multiquery_attention"}},
    "learned positions": {"max_seq_len": 100, "attn_config": {"alibi": False}},
}


@pytest.fixture
def tiny_mpt() -> MakeMPT:
    """Makes a random model: d_model 24, 61 tokens, ALiBi; keywords change its config."""

    def make(*, attn_config: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> MPT:
        sizes: dict[str, Any] = {"d_model": 24, "n_heads": 3, "n_layers": 2, "max_seq_len": 16, "vocab_size": 61}
        attention = AttentionConfig(**{"alibi": True, **(attn_config or {})})
        model = MPT(MPTConfig(**(sizes | {"no_bias": True} | changes), attn_config=attention))
        model.init_weights(std=0.3, seed=seed)
        return model

    return make


@pytest.fixture(params=ARCHITECTURES)
def any_mpt(request: pytest.FixtureRequest, tiny_mpt: MakeMPT) -> MPT:
    """One model of each architecture."""
    return tiny_mpt(**ARCHITECTURES[request.param])


@pytest.fixture
def book() -> list[int]:
    """Thirty tokens, longer than most tiny models were "trained" on."""
    return torch.randint(0, 61, (30,), generator=torch.Generator().manual_seed(5)).tolist()
