"""No text can do more than the weights' bounds say: random weights of every kind, random and worst inputs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epilogue.kernels.paged_attention import Storage, dequantize, quantize, rotate
from epilogue.model import MPT, AttentionConfig, MPTConfig, eviction_bounds
from epilogue.model.weight_bounds import _root, _smallest_eigenvalue, _storage_error

STORAGES: list[Storage] = ["float32", "bfloat16", "int8", "int4"]


@st.composite
def configs(draw: st.DrawFn) -> MPTConfig:
    kv_n_heads, group, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([2, 4, 8, 10]))
    norm_of_qk = draw(st.sampled_from([{}, {}, {"qk_ln": True}, {"qk_gn": True}]))
    return MPTConfig(
        d_model=kv_n_heads * group * head_dim,
        n_heads=kv_n_heads * group,
        n_layers=1,
        vocab_size=7,
        no_bias=draw(st.booleans()),
        attention_bias=draw(st.sampled_from([None, True])),
        norm_type=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        attn_config=AttentionConfig(
            alibi=True,
            attn_type="grouped_query_attention",
            kv_n_heads=kv_n_heads,
            clip_qkv=draw(st.sampled_from([None, None, 0.3, 4.0])),
            softmax_scale=draw(st.sampled_from([None, -0.7, 0.0, 3.0])),
            **norm_of_qk,
        ),
    )


def odd_model(config: MPTConfig, seed: int, *, dtype: torch.dtype = torch.float64) -> MPT:
    """Weights of very different sizes, some rows near zero, gains and biases of either sign."""
    torch.manual_seed(seed)
    model = MPT(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
            parameter.mul_(
                10.0 ** torch.empty(parameter.shape[:1]).uniform_(-2, 0.5).view(-1, *[1] * (parameter.ndim - 1))
            )
        if seed % 3 == 0:  # queries that are their own keys' opposites, and near multiples of one another
            weight, heads = model.transformer.blocks[0].attn.Wqkv.weight, config.kv_n_heads * config.head_dim
            weight[config.d_model : config.d_model + heads] = -weight[:heads]
    return model.to(dtype)


def worst_inputs(model: MPT, num_keys: int) -> Tensor:
    """x_TC of the block's norm: drawn, near multiples of one another, tiny and huge, and climbed to the extremes."""
    block, scale = model.transformer.blocks[0], model.config.softmax_scale
    x_TC = torch.randn(num_keys, model.config.d_model, dtype=torch.float64)
    x_TC = (x_TC * 10.0 ** torch.empty(num_keys, 1).uniform_(-3, 3)).requires_grad_()
    for sign in (1, -1):
        steps = torch.optim.Adam([x_TC], lr=0.05)
        for _ in range(15):
            own_TH, cross_HTS = scores_of(model.double(), block, x_TC, scale)
            steps.zero_grad()
            # Half of the inputs go for low own scores, half for large scores between them.
            (own_TH[::2].sum() - sign * cross_HTS[:, 1::2, 1::2].sum()).backward()
            steps.step()
    return x_TC.detach()


def scores_of(model: MPT, block: Any, x_TC: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q_THD, k_THD = queries_and_keys(model, block, x_TC)
    return (q_THD * k_THD).sum(-1) * scale, torch.einsum("thd,shd->hts", q_THD, k_THD) * scale


def queries_and_keys(model: MPT, block: Any, x_TC: Tensor) -> tuple[Tensor, Tensor]:
    """Keys repeated for every query head."""
    q_BTHD, k_BTKD, _ = block.attn._project(block.norm_1(x_TC)[None])
    return q_BTHD[0], k_BTKD[0].repeat_interleave(q_BTHD.shape[2] // k_BTKD.shape[2], dim=1)


def assert_bounded(config: MPTConfig, seed: int, storage: Storage, dtype: torch.dtype) -> None:
    model = odd_model(config, seed, dtype=dtype)
    bounds = eviction_bounds(model, storage)
    x_TC = worst_inputs(odd_model(config, seed), 40).to(dtype)
    with torch.no_grad():
        q_THD, k_THD = queries_and_keys(model, model.transformer.blocks[0], x_TC)
        stored_THD = dequantize(quantize(k_THD, storage), dtype=torch.float32)
        scores_HTS = torch.einsum("thd,shd->hts", q_THD.double(), stored_THD.double()) * config.softmax_scale
        group = config.n_heads // config.kv_n_heads
        most_HS = bounds.largest_scores(0, stored_THD.transpose(0, 1)[::group])
    assert (scores_HTS.abs().amax(1) <= most_HS.double()).all()
    assert (most_HS.double() <= bounds.largest_LH[0][:, None]).all()
    assert (scores_HTS.diagonal(dim1=1, dim2=2) >= bounds.floor_LH[0][:, None]).all()
    assert (bounds.floor_LH <= bounds.largest_LH).all()


@given(configs(), st.integers(0, 10**6), st.sampled_from(STORAGES))
@settings(max_examples=60)
def test_no_input_exceeds_the_bounds(config: MPTConfig, seed: int, storage: Storage) -> None:
    assert_bounded(config, seed, storage, torch.float64)


@given(configs(), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=40)
def test_nor_with_the_rounding_of_a_dtype(config: MPTConfig, seed: int, dtype: torch.dtype) -> None:
    assert_bounded(config, seed, "float32" if dtype == torch.float32 else "bfloat16", dtype)


PLAIN = MPTConfig(
    d_model=24, n_heads=3, n_layers=1, vocab_size=7, no_bias=True, attn_config=AttentionConfig(alibi=True)
)


def test_the_bounds_are_reached() -> None:
    """Not only true but tight: the input along the extreme direction comes close."""
    model = odd_model(replace(PLAIN, norm_type="rmsnorm"), 1)
    with torch.no_grad():
        model.transformer.blocks[0].norm_1.weight.fill_(1)
    bounds, weight = eviction_bounds(model, "float32"), model.transformer.blocks[0].attn.Wqkv.weight.detach()
    q_HDC, k_HDC = (x.unflatten(0, (3, 8)) for x in weight.split(24)[:2])
    form_HCC = q_HDC.transpose(1, 2) @ k_HDC * model.config.softmax_scale
    least_H = torch.linalg.eigvalsh(form_HCC + form_HCC.transpose(1, 2))[:, 0] / 2 * 24
    torch.testing.assert_close(bounds.floor_LH[0], least_H, rtol=1e-3, atol=1e-3)
    k_KTD = torch.randn(3, 50, 8)
    reached_HT = (q_HDC.transpose(1, 2) @ k_KTD.double().transpose(1, 2)).norm(dim=1) * math.sqrt(24 / 8)
    torch.testing.assert_close(bounds.largest_scores(0, k_KTD).double(), reached_HT, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 10**6), st.floats(-8, 8))
@settings(max_examples=60)
def test_small_eigenvalue_problems(width: int, columns: int, seed: int, magnitude: float) -> None:
    """Against the whole matrix, also where one factor is much larger or has no full rank."""
    torch.manual_seed(seed)
    a, b = (torch.randn(2, width, columns, dtype=torch.float64) for _ in range(2))
    a[:, -1] = 0
    a *= 10.0**magnitude
    whole = (a.transpose(1, 2) @ b + b.transpose(1, 2) @ a) / 2
    least = torch.linalg.eigvalsh(whole)[:, 0].clamp(max=0)
    size = torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2)
    found = _smallest_eigenvalue(a, b)
    assert (found <= least + 1e-12 * size).all()
    assert (found >= least - 1e-5 * size - 1e-300).all()
    vectors = torch.randn(2, 5, width, dtype=torch.float64)
    torch.testing.assert_close((vectors @ _root(a).transpose(1, 2)).norm(dim=-1), (vectors @ a).norm(dim=-1))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("width", [2, 4, 6, 64, 128])
def test_storage_errors(storage: Storage, width: int) -> None:
    """Random keys, outliers, constants, and those built to lie half a step from every code; never beyond the bound."""
    keys = [torch.randn(200, width), torch.randn(200, width) ** 9, torch.ones(1, width), torch.eye(width)]
    keys += [torch.randn(50, width) * 1e-30, torch.randn(50, width) * 1e18, torch.randn(50, width) + 1e4]
    half = torch.zeros(1, width)
    half[0, :2] = torch.tensor([1.0, -1.0])  # int4: the others stand between two codes
    steps = torch.full((1, width), 0.4999 / 127)
    steps[0, 0] = 1.0
    keys += [rotate(half), steps, half]
    largest = 0.0
    for k in keys:
        error = (dequantize(quantize(k, storage), dtype=torch.float32).double() - k.double()).norm(dim=-1)
        share = error / k.double().norm(dim=-1)
        assert (share <= _storage_error(storage, width)).all()
        largest = max(largest, float(share.max()))
    if width >= 64:
        assert largest >= {"float32": 0.0, "bfloat16": 0.4}.get(storage, 0.9) * _storage_error(storage, width)


def test_weights_that_are_not_finite_bound_nothing() -> None:
    model = odd_model(PLAIN, 0)
    with torch.no_grad():
        model.transformer.blocks[0].attn.Wqkv.weight[0, 0] = math.nan
    bounds = eviction_bounds(model, "float32")
    assert (bounds.largest_LH == math.inf).all()
    most_LK = bounds.most_pages(torch.ones(3), 1000, epsilon=0.5, kv_heads=3, chunk_tokens=1)
    assert (most_LK == 8).all()
