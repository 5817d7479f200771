"""The whole model in one call of the extension against the model itself, module by module."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from epilogue.kernels.model_step import StepModel
from epilogue.kernels.paged_attention import Storage
from epilogue.model import (
    MPT,
    AttentionConfig,
    KVCache,
    MPTConfig,
    NativeStep,
    PagePool,
    PageTable,
    Quantization,
    QuantLinear,
    Reads,
    Segment,
)
from epilogue.model.adapters import adapters, add_adapters
from epilogue.model.eviction import EvictionBounds
from epilogue.model.native_step import weights_of
from epilogue.model.weight_bounds import eviction_bounds
from kernels.attention.exactness import assert_within_twice_the_error
from kernels.native_cases import each_instruction_set, needs_extension
from kernels.quant_linear.weights import random_weight

pytestmark = needs_extension


def make(*, attn: dict[str, Any] | None = None, is_narrow: bool = False, **changes: Any) -> MPT:
    sizes: dict[str, Any] = {"d_model": 48, "n_heads": 3, "n_layers": 2, "max_seq_len": 600, "vocab_size": 61}
    attention = AttentionConfig(**{"alibi": True, **(attn or {})})
    model = MPT(MPTConfig(**{"no_bias": True, **sizes, **changes}, attn_config=attention)).eval()
    model.init_weights(std=0.3, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape) * 0.2)  # gains that are not 1 and biases that are not 0
            if is_narrow:
                weight.copy_(weight.bfloat16())
    if is_narrow:
        model.keep_copies(coded_head=False)
    return model


def make_quantised(
    bits: int, group_size: int, *, has_order: bool = False, scale_dtype: torch.dtype = torch.float16, **changes: Any
) -> MPT:
    """Zero points that are not the middle of the range, and codes of which every one occurs."""
    model = make(quantization=Quantization(bits=bits, group_size=group_size), **changes)
    torch.manual_seed(bits * group_size)
    for layer in model.modules():
        if isinstance(layer, QuantLinear):
            size = layer.in_features if group_size == -1 else group_size
            layer.quant_weight = random_weight(
                layer.out_features, layer.in_features, bits=bits, group_size=size, has_order=has_order,
                scale_dtype=scale_dtype,
            )  # fmt: skip
            layer.scales_OG.mul_(64 / 2**bits)
    return model


class Texts:
    """Some texts on pages, each read so far by the model itself."""

    def __init__(self, model: MPT, lengths: list[int], storage: Storage, *, with_bounds: bool = False) -> None:
        self.model, config = model, model.config
        self.tables = [PageTable.empty(config, capacity_tokens=length + 20) for length in lengths]
        pages = sum(table.ids_LKP.numel() for table in self.tables)
        self.pool = PagePool(config, num_pages=pages, storage=storage)
        ids = iter(torch.randperm(pages).split([table.ids_LKP.numel() for table in self.tables]))
        for table in self.tables:
            table.ids_LKP[...] = next(ids).view_as(table.ids_LKP)
        self.bounds: EvictionBounds | None = eviction_bounds(model, storage) if with_bounds else None
        self.reads = [Reads.none(config.n_heads) for _ in lengths]
        if any(lengths):
            tokens = torch.randint(config.vocab_size, (1, sum(lengths)))
            self.run(lengths, tokens[0].tolist())
        for table, length in zip(self.tables, lengths, strict=True):
            table.num_tokens = length

    def segments(self, counts: list[int]) -> list[Segment]:
        return [
            Segment(table, count, reads)
            for table, count, reads in zip(self.tables, counts, self.reads, strict=True)
            if count
        ]

    @torch.no_grad()
    def run(self, counts: list[int], ids: list[int]) -> Tensor:
        """logits_RV by the model itself."""
        cache = KVCache(self.pool, self.segments(counts), bounds=self.bounds)
        return self.model(torch.tensor([ids]), cache)[0]

    @torch.no_grad()
    def step(self, counts: list[int], ids: list[int]) -> Tensor:
        """logits_RV by the extension."""
        native = NativeStep(self.model, self.pool, self.bounds, epsilon=1e-6)
        assert native.can_take(self.segments(counts))
        x_RC, logits_RV = native.step(self.segments(counts), ids)
        torch.testing.assert_close(self.model.head(x_RC), logits_RV, rtol=1e-5, atol=1e-5, equal_nan=True)
        return logits_RV


def check(model: MPT, lengths: list[int], counts: list[int], storage: Storage = "float32", *, draws: int = 1) -> None:
    """The extension and the model on copies of the same pages; errors are of all draws together."""
    if storage == "float32":
        found = [_logits(model, lengths, counts, storage) for _ in range(draws)]
        assert_within_twice_the_error(*([torch.cat(which)] for which in zip(*found, strict=True)))
    else:
        # A number on the edge between two codes may get either of them.
        ours, theirs, _ = _logits(model, lengths, counts, storage)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))


def _logits(model: MPT, lengths: list[int], counts: list[int], storage: Storage) -> tuple[Tensor, Tensor, Tensor]:
    """The extension's, the model's, and those in fp64 for fp32 pages; what else a step leaves behind is compared."""
    texts = Texts(model, lengths, storage, with_bounds=True)
    twin = copy.deepcopy(texts)
    ids = torch.randint(model.config.vocab_size, (sum(counts),)).tolist()
    ours, theirs = texts.step(counts, ids), twin.run(counts, ids)
    exact = copy.deepcopy(twin)
    truth = theirs
    if storage == "float32":
        exact.model = copy.deepcopy(model).double()
        for pages in (exact.pool.keys, exact.pool.values):
            assert pages.data_PWD.dtype == torch.float32
        truth = exact.run(counts, ids)
    for a, b, reads, others in zip(texts.tables, twin.tables, texts.reads, twin.reads, strict=True):
        torch.testing.assert_close(a.norms_LKP, b.norms_LKP, rtol=2e-2, atol=0)
        torch.testing.assert_close(a.scores_LHP, b.scores_LHP, rtol=2e-2, atol=1e-6)
        assert torch.equal(reads.dense_H, others.dense_H)
        assert torch.equal(reads.visited_H, others.visited_H)
    return ours, theirs, truth


heads_and_kinds = st.sampled_from(
    [
        (1, {}), (3, {}), (8, {}), (6, {"attn_type": "grouped_query_attention", "kv_n_heads": 2}),
        (4, {"attn_type": "multiquery_attention"}),
    ]
)  # fmt: skip


@settings(max_examples=30)
@given(
    heads=heads_and_kinds,
    clip=st.sampled_from([None, 0.5, 3]),
    norms=st.sampled_from([{}, {"qk_ln": True}, {"qk_gn": True}]),
    norm_type=st.sampled_from(["layernorm", "low_precision_layernorm", "rmsnorm"]),
    no_bias=st.booleans(),
    has_alibi=st.booleans(),
    is_tied=st.booleans(),
    is_narrow=st.booleans(),
    logit_scale=st.sampled_from([None, 0.3, "inv_sqrt_d_model"]),
    lengths=st.sampled_from([[0], [62], [127], [300], [5, 130], [0, 260, 17]]),
    extra=st.integers(0, 3),
)
@example(
    heads=(3, {}), clip=None, norms={}, norm_type="layernorm", no_bias=False, has_alibi=True, is_tied=True,
    is_narrow=True, logit_scale=None, lengths=[300], extra=3,
)  # fmt: skip
def test_as_exact_as_the_model(
    heads: tuple[int, dict[str, Any]], clip: float | None, norms: dict[str, bool], norm_type: str, no_bias: bool,
    has_alibi: bool, is_tied: bool, is_narrow: bool, logit_scale: Any, lengths: list[int], extra: int,
) -> None:  # fmt: skip
    torch.manual_seed(extra)
    model = make(
        attn={"alibi": has_alibi, "clip_qkv": clip, **norms, **heads[1]}, n_heads=heads[0], norm_type=norm_type,
        no_bias=no_bias, tie_word_embeddings=is_tied, is_narrow=is_narrow, logit_scale=logit_scale,
    )  # fmt: skip
    check(model, lengths, [1 + extra] + [1] * (len(lengths) - 1))


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4"])
def test_any_storage(storage: Storage) -> None:
    check(make(n_heads=6, d_model=96), [300, 40], [2, 1], storage)


@settings(max_examples=20)
@given(
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([-1, 8, 16, 32, 64, 128]),
    width=st.sampled_from([48, 96, 204]),
    has_order=st.booleans(),
    scale_dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    no_bias=st.booleans(),
    lengths=st.sampled_from([[0], [127], [5, 130]]),
    extra=st.integers(0, 3),
)
def test_codes_as_exact_as_the_model(
    bits: int, group_size: int, width: int, has_order: bool, scale_dtype: torch.dtype, no_bias: bool,
    lengths: list[int], extra: int,
) -> None:  # fmt: skip
    torch.manual_seed(extra)
    model = make_quantised(
        bits, group_size, has_order=has_order, scale_dtype=scale_dtype, no_bias=no_bias, d_model=width
    )
    # The largest of few errors is a matter of luck.
    check(model, lengths, [1 + extra] + [1] * (len(lengths) - 1), draws=8)


def test_a_coded_head_is_the_models() -> None:
    model = make_quantised(4, 16)
    model.keep_copies()
    assert model.coded_head is not None
    texts = Texts(model, [40], "float32")
    twin = copy.deepcopy(texts)
    twin.model = model
    torch.testing.assert_close(texts.step([2], [3, 4]), twin.run([2], [3, 4]), rtol=1e-4, atol=1e-4)


@each_instruction_set
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_on_any_instruction_set(instructions: str, bits: int) -> None:
    model = make_quantised(bits, 32, no_bias=False)
    texts = Texts(model, [70], "float32")
    twin, weights = copy.deepcopy(texts), weights_of(model)
    assert weights is not None
    pool, segments = texts.pool, texts.segments([2])
    step = StepModel(weights, pool.keys, pool.values, None, epsilon=1e-6, instructions=instructions)
    native = NativeStep(model, pool, None, epsilon=1e-6)
    assert native.can_take(segments)
    native._step = step
    ours, theirs = native.step(segments, [3, 4])[1], twin.run([2], [3, 4])
    exact = copy.deepcopy(twin)
    exact.model = copy.deepcopy(model).double()
    assert_within_twice_the_error([ours], [theirs], [exact.run([2], [3, 4])])


def test_codes_that_change_are_read_as_they_are() -> None:
    model = make_quantised(4, 16)
    texts = Texts(model, [40], "float32")
    native = NativeStep(model, texts.pool, None, epsilon=1e-6)
    native.step(texts.segments([1]), [3])
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    layers[0].quant_weight = random_weight(layers[0].out_features, 48, group_size=8)
    layers[1].scales_OG.mul_(1.5)
    assert native.can_take(texts.segments([1]))
    torch.testing.assert_close(native.step(texts.segments([1]), [3])[1], texts.run([1], [3]), rtol=1e-4, atol=1e-4)


def test_steps_one_after_the_other_are_one_pass() -> None:
    texts = Texts(make(), [120], "float32")
    twin, ids = copy.deepcopy(texts), list(range(16))
    whole = twin.run([16], ids)
    for i in ids:
        torch.testing.assert_close(texts.step([1], [i])[0], whole[i], rtol=1e-4, atol=1e-4)
        texts.tables[0].num_tokens += 1


def test_weights_that_change_are_read_as_they_are() -> None:
    model = make(is_narrow=True)
    texts = Texts(model, [40], "float32")
    native = NativeStep(model, texts.pool, None, epsilon=1e-6)
    native.step(texts.segments([1]), [3])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.37)
    assert native.can_take(texts.segments([1]))
    changed = native.step(texts.segments([1]), [3])[1]
    torch.testing.assert_close(changed, texts.run([1], [3]), rtol=1e-4, atol=1e-4)


def test_what_it_does_not_run_is_left_to_the_model() -> None:
    def takes(model: MPT, count: int = 1) -> bool:
        texts = Texts(model, [4], "float32")
        return NativeStep(model, texts.pool, None, epsilon=1e-6).can_take(texts.segments([count]))

    assert takes(make())
    assert takes(make(), 16)
    assert not takes(make(), 17)
    assert not takes(make().double())
    assert not takes(make().bfloat16())
    assert not takes(make().train())
    watched = make()
    watched.transformer.blocks[0].register_forward_hook(lambda *_: None)
    assert not takes(watched)
    wrapped = make()
    wrapped.transformer.blocks[0].ffn.up_proj = torch.nn.Linear(48, 192, bias=False)  # type: ignore[union-attr]
    assert not takes(wrapped)
    assert not takes(make(attn={"alibi": False}, max_seq_len=4), 1)
    assert takes(make_quantised(4, 16))
    assert not takes(make_quantised(4, 24))  # three words a group
    for model in (make(), make_quantised(4, 16)):
        add_adapters(model, rank=2, alpha=1, targets=["up_proj"])
        assert any(adapters(model))
        assert not takes(model.eval())


def test_a_missing_page_changes_nothing() -> None:
    texts = Texts(make(), [128], "float32")
    texts.tables[0].ids_LKP[1, 2, 1] = -1
    before = copy.deepcopy(texts)
    with pytest.raises(IndexError, match="not all in the pool"):
        texts.step([1], [3])
    # As bits: a pool begins as whatever was in memory, NaN too.
    assert torch.equal(texts.pool.keys.data_PWD.view(torch.int32), before.pool.keys.data_PWD.view(torch.int32))


def test_ids_and_tables_that_do_not_fit_are_refused() -> None:
    texts = Texts(make(), [3], "float32")
    for ids, message in (([61], "vocabulary"), ([-1], "vocabulary"), ([1, 2], "new tokens")):
        with pytest.raises(ValueError, match=message):
            texts.step([1], ids)
    texts.tables[0].num_tokens = 128
    with pytest.raises(ValueError, match="pages for them"):
        texts.step([1], [1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_heard(value: float) -> None:
    model = make()
    with torch.no_grad():
        model.transformer.blocks[1].ffn.up_proj.weight[5, 7] = value  # type: ignore[union-attr, index]
    assert not Texts(model, [4], "float32").step([1], [3]).isfinite().any()
