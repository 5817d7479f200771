"""Costs computed from a configuration, against the model itself and PyTorch's own counters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import (
    MPT,
    NAMED_SIZES,
    AttentionConfig,
    MPTConfig,
    flops_per_token,
    kv_bytes_per_token,
    num_parameters,
    page_bytes,
)


@st.composite
def configs(draw: st.DrawFn) -> MPTConfig:
    kv_n_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    attn_type = draw(st.sampled_from(["multihead_attention", "multiquery_attention", "grouped_query_attention"]))
    norm_of_qk = draw(st.sampled_from([{}, {"qk_ln": True}, {"qk_gn": True}]))
    n_heads = kv_n_heads * group
    return MPTConfig(
        d_model=n_heads * draw(st.integers(1, 8)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 3)),
        expansion_ratio=draw(st.sampled_from([1, 2, 4, 3.0])),
        max_seq_len=draw(st.integers(1, 50)),
        vocab_size=draw(st.integers(1, 100)),
        learned_pos_emb=draw(st.booleans()),
        no_bias=draw(st.booleans()),
        attention_bias=draw(st.sampled_from([None, True, False])),
        norm_type=draw(st.sampled_from(["layernorm", "rmsnorm", "low_precision_layernorm"])),
        tie_word_embeddings=draw(st.booleans()),
        attn_config=AttentionConfig(
            alibi=draw(st.booleans()),
            attn_type=attn_type,
            kv_n_heads=kv_n_heads if attn_type == "grouped_query_attention" else None,
            **norm_of_qk,
        ),
    )


@given(configs())
@settings(max_examples=50)
def test_parameters_are_those_of_the_model(config: MPTConfig) -> None:
    with torch.device("meta"):
        model = MPT(config)
    assert num_parameters(config) == sum(x.numel() for x in model.state_dict().values())


def test_parameters_of_the_released_7b() -> None:
    assert num_parameters(NAMED_SIZES["mpt-7b"]) == 6_649_286_656
    assert len(state_names("mpt-7b")) == 194


def state_names(name: str) -> list[str]:
    with torch.device("meta"):
        return list(MPT(NAMED_SIZES[name]).state_dict())


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("attn_type", ["multihead_attention", "multiquery_attention"])
def test_flops_are_those_pytorch_counts(attn_type: str, with_head: bool) -> None:
    config = MPTConfig(
        d_model=48, n_heads=3, n_layers=2, vocab_size=100, attn_config=AttentionConfig(alibi=True, attn_type=attn_type)
    )
    model = MPT(config)
    model.set_attention_backend("reference")  # multiplies every query with every key, later ones too
    run = model if with_head else model.transformer
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(torch.zeros(2, 50, dtype=torch.int64))
    expected = flops_per_token(config, context_tokens=50, with_head=with_head)
    assert counter.get_total_flops() == 2 * 50 * expected
    # A token at position t sees t + 1 keys; over a whole causal read that is half of the square, and the diagonal.
    causal = sum(flops_per_token(config, context_tokens=t + 1, with_head=with_head) for t in range(50))
    no_attention = 50 * flops_per_token(config, context_tokens=0, with_head=with_head)
    assert (causal - no_attention) * 2 * 50 == (50 * expected - no_attention) * (50 + 1)


def test_a_cached_token_of_the_7b_takes_half_a_mebibyte() -> None:
    assert kv_bytes_per_token(NAMED_SIZES["mpt-7b"], torch.bfloat16) == 512 * 1024


@given(configs(), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=25)
def test_bytes_of_a_dense_cache_are_those_of_its_pages(config: MPTConfig, dtype: torch.dtype) -> None:
    """A page of every layer and head holds PAGE_TOKENS tokens."""
    storage = "float32" if dtype == torch.float32 else "bfloat16"
    a_page_each = config.n_layers * config.kv_n_heads * page_bytes(config, storage)
    assert a_page_each == PAGE_TOKENS * kv_bytes_per_token(config, dtype)
