"""Decode of a layer in C++ against its oracle: what is stored, what is planned, and what comes out."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from epilogue.kernels.paged_attention import (
    PAGE_TOKENS,
    PageTensors,
    Storage,
    dequantize,
    gather_pages,
    quantize,
    write_pages,
)
from epilogue.kernels.reach_decode import Decoded, LayerTable, ScoreBounds, reach_decode
from epilogue.kernels.reach_decode.native import reach_decode_native
from epilogue.kernels.reach_decode.reference import reach_decode_reference
from epilogue.model.alibi import alibi_slopes
from epilogue.model.reach import plan_reach
from kernels.attention.exactness import assert_within_twice_the_error
from kernels.native_cases import each_instruction_set, needs_extension
from kernels.paged_attention.books import STORAGES, empty_pages, pytorch_attention
from kernels.paged_attention.books import Book as Pages

pytestmark = needs_extension
each_storage = pytest.mark.parametrize("storage", STORAGES)


class Layer:
    """A text of ``num_older`` tokens whose pages lie scattered over the pool, and new tokens behind it."""

    def __init__(
        self, num_older: int, num_tokens: int = 1, *, heads: int = 3, kv_heads: int = 0, head_dim: int = 16,
        storage: Storage = "float32", value_storage: Storage | None = None, dtype: torch.dtype = torch.float32,
        bias_max: float = 8, with_bounds: bool = True, size: float = 1.0,
    ) -> None:  # fmt: skip
        kv_heads = kv_heads or heads
        columns = -(-(num_older + num_tokens) // PAGE_TOKENS)
        ids = torch.full((kv_heads, columns + 2), -1)
        ids[:, :columns] = torch.randperm(kv_heads * columns + 2)[: kv_heads * columns].view(kv_heads, -1)
        self.keys, self.values = (
            empty_pages(kv_heads * columns + 2, head_dim, kind) for kind in (storage, value_storage or storage)
        )
        k = torch.randn(kv_heads, num_older, head_dim) * size
        write_pages(self.keys, k, ids[:, :columns], 0)
        write_pages(self.values, torch.randn(kv_heads, num_older, head_dim), ids[:, :columns], 0)
        norms = torch.zeros(kv_heads, columns + 3)
        stored = dequantize(quantize(k, storage)).float().norm(dim=-1) * (1 + 1e-6)
        padded = torch.nn.functional.pad(stored, (0, -num_older % PAGE_TOKENS)).unflatten(1, (-1, PAGE_TOKENS))
        norms[:, : padded.shape[1]] = padded.amax(-1)
        bounds = ScoreBounds(
            torch.randn(heads, head_dim, head_dim), torch.randn(heads, head_dim), torch.rand(heads), 0.9,
            torch.rand(heads, columns + 1),
        )  # fmt: skip
        self.table = LayerTable(ids, norms, num_older, bounds if with_bounds else None)
        qkv = torch.randn(num_tokens, heads + 2 * kv_heads, head_dim).mul(size).to(dtype)
        self.q, self.k, self.v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        self.slopes, self.scale, self.epsilon = alibi_slopes(heads, bias_max), head_dim**-0.5, 1e-6

    def copy(self) -> "Layer":
        """The same in memory of its own."""
        twin = object.__new__(Layer)
        vars(twin).update(vars(self))
        twin.keys, twin.values = (
            PageTensors(*(None if x is None else x.clone() for x in vars(pages).values()))  # type: ignore[arg-type]
            for pages in (self.keys, self.values)
        )
        bounds = self.table.bounds
        twin.table = replace(
            self.table,
            norms_KP=self.table.norms_KP.clone(),
            bounds=None if bounds is None else replace(bounds, scores_HP=bounds.scores_HP.clone()),
        )
        return twin

    def run(self, run: Any, **options: Any) -> Decoded:
        """One call of the op or of a backend."""
        decoded: Decoded = run(
            self.q, self.k, self.v, self.keys, self.values, self.table, self.slopes,
            scale=self.scale, epsilon=self.epsilon, **options,
        )  # fmt: skip
        return decoded

    def attended(self, first_page: Tensor) -> Pages:
        """Attention over what is in the pages, from a head's first page on, for the oracles of paged attention."""
        stop = -(-(self.table.num_tokens + len(self.q)) // PAGE_TOKENS)
        return Pages(
            self.q[None], self.keys, self.values, self.table.ids_KP[None, :, :stop].int(),
            torch.tensor([self.table.num_tokens + len(self.q)]), self.slopes, first_page[None], self.scale,
        )  # fmt: skip


def check(layer: Layer, instructions: str = "") -> Decoded:
    """Run a copy through the oracle and the layer itself through C++; the two must agree in all they do."""
    twin = layer.copy()
    truth = twin.run(reach_decode_reference)
    decoded = layer.run(reach_decode_native, instructions=instructions)
    _assert_stored_alike(layer, twin)
    torch.testing.assert_close(layer.table.norms_KP, twin.table.norms_KP, rtol=3e-6, atol=0)
    if layer.table.bounds is not None and twin.table.bounds is not None:
        torch.testing.assert_close(layer.table.bounds.scores_HP, twin.table.bounds.scores_HP, rtol=1e-5, atol=0)
    assert (decoded.first_page_H <= truth.first_page_H).all()
    assert (decoded.omitted_mass_H <= layer.epsilon).all()
    exact = layer.attended(decoded.first_page_H)
    assert_within_twice_the_error(
        [decoded.out_THD], [pytorch_attention(exact)[0]], [exact.wide().attend("reference")[0]]
    )
    return decoded


def _assert_stored_alike(layer: Layer, twin: Layer) -> None:
    """Codes as ``quantize`` gives them, but for int4's rotation, in which fp32 rounds in another order."""
    ids = layer.table.ids_KP.clamp(min=0)
    for ours, theirs in ((layer.keys, twin.keys), (layer.values, twin.values)):
        if ours.storage != "int4":
            for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
            continue
        assert ours.scale_PW is not None
        step = ours.scale_PW[ids].flatten(1).nan_to_num(0)[..., None]
        difference = (gather_pages(ours, ids) - gather_pages(theirs, ids)).nan_to_num(0)
        assert (difference.norm(dim=-1) <= 1.01 * step[..., 0] + 1e-5).all()


@each_instruction_set
@each_storage
@pytest.mark.parametrize(
    ("num_older", "num_tokens", "heads", "kv_heads", "head_dim"),
    [
        (0, 1, 1, 1, 16), (0, 16, 3, 3, 64), (62, 1, 8, 8, 64), (999, 1, 3, 1, 80), (1000, 5, 12, 4, 16),
        (127, 2, 8, 8, 128), (250, 16, 4, 2, 6),
    ],
)  # fmt: skip
def test_as_exact_as_pytorch(
    instructions: str, storage: Storage, num_older: int, num_tokens: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    layer = Layer(num_older, num_tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim, storage=storage)
    check(layer, instructions)


@pytest.mark.parametrize("threads", [1, 2, 3])
@each_storage
def test_threads_share_the_work_and_change_nothing(storage: Storage, threads: int) -> None:
    layer = Layer(1000, 3, heads=8, head_dim=32, storage=storage)
    torch.set_num_threads(threads)
    for _ in range(3):
        check(layer.copy())


@pytest.mark.parametrize(("storage", "value_storage"), [("int8", "float32"), ("float32", "int4"), ("int4", "bfloat16")])
def test_keys_and_values_may_differ_in_storage(storage: Storage, value_storage: Storage) -> None:
    check(Layer(500, 2, head_dim=32, storage=storage, value_storage=value_storage))


@each_storage
def test_bf16_queries(storage: Storage) -> None:
    layer = Layer(700, 3, heads=4, kv_heads=2, storage=storage, dtype=torch.bfloat16)
    assert check(layer).out_THD.dtype == torch.bfloat16


@pytest.mark.parametrize("head_dim", [7, 33])
def test_an_odd_width(head_dim: int) -> None:
    check(Layer(300, 2, head_dim=head_dim, storage="int8"))


def test_token_by_token_is_as_many_at_once() -> None:
    many = Layer(120, 16, heads=4, kv_heads=2, with_bounds=True)
    one = many.copy()
    q, k, v = many.q, many.k, many.v
    together = many.run(reach_decode_native).out_THD
    for t in range(16):
        one.q, one.k, one.v = (x[t : t + 1] for x in (q, k, v))
        torch.testing.assert_close(one.run(reach_decode_native).out_THD[0], together[t])
        one.table = replace(one.table, num_tokens=one.table.num_tokens + 1)
    torch.testing.assert_close(one.table.norms_KP, many.table.norms_KP)
    assert one.table.bounds is not None
    assert many.table.bounds is not None
    torch.testing.assert_close(one.table.bounds.scores_HP, many.table.bounds.scores_HP)


@each_storage
@pytest.mark.parametrize("num_tokens", [1, 4])
def test_the_plan_is_that_of_the_reach(storage: Storage, num_tokens: int) -> None:
    layer = Layer(5000, num_tokens, heads=8, kv_heads=4, head_dim=32, storage=storage)
    decoded = check(layer)
    stored = dequantize(quantize(layer.k, storage)).float()
    plan = plan_reach(
        layer.q[None], stored[None], layer.table.norms_KP[:, :-3], layer.slopes,
        scale=layer.scale, epsilon=layer.epsilon, num_keys=5000 + num_tokens,
    )  # fmt: skip
    assert torch.equal(decoded.first_page_H * PAGE_TOKENS, plan.first_key_HN[:, 0])
    assert decoded.first_page_H.max() > 0
    torch.testing.assert_close(decoded.omitted_mass_H, plan.omitted_mass_HN[:, 0], rtol=1e-4, atol=0)


def test_an_epsilon_of_0_looks_at_everything() -> None:
    layer = Layer(1000)
    layer.epsilon = 0.0
    decoded = check(layer)
    assert not decoded.first_page_H.any()
    assert not decoded.omitted_mass_H.any()


def test_a_page_with_a_huge_key_is_not_left_out() -> None:
    layer = Layer(1000, 2, heads=2, bias_max=4)
    layer.table.norms_KP[:, 3] = 1e30
    assert layer.run(reach_decode_native).first_page_H.max() <= 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["key", "norm", "query"])
def test_what_is_not_finite_skips_nothing(value: float, where: str) -> None:
    layer = Layer(1000, 2, heads=2, bias_max=4)
    if where == "norm":
        layer.table.norms_KP[:, 3] = value
    else:
        (layer.k if where == "key" else layer.q)[0, :, 3] = value
    decoded = layer.run(reach_decode_native)
    assert not decoded.first_page_H.any()
    if where == "norm":
        assert decoded.out_THD.isfinite().all()


def test_a_key_that_is_not_a_number_is_heard() -> None:
    layer = Layer(1000, 1, heads=2, bias_max=4)
    page = int(layer.table.ids_KP[0, 2])
    layer.keys.data_PWD[page, 5, 3] = torch.nan
    layer.table.norms_KP[0, 2] = torch.nan
    out = layer.run(reach_decode_native).out_THD
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()


def test_no_token_hears_one_behind_it() -> None:
    layer = Layer(100, 8, heads=2)
    layer.k[5], layer.v[5] = torch.nan, torch.nan
    out = layer.run(reach_decode_native).out_THD
    assert out[:5].isfinite().all()
    assert out[5:].isnan().all()


@each_storage
def test_evicted_pages_are_not_read(storage: Storage) -> None:
    layer = Layer(2000, 2, heads=4, kv_heads=2, storage=storage, bias_max=16)
    layer.table.ids_KP[0, :7] = -1
    layer.table.ids_KP[1, :3] = -1
    decoded = check(layer)
    assert decoded.first_page_H.tolist()[2:] == [3, 3]
    assert (decoded.omitted_mass_H[2:] == layer.epsilon).all()


def test_pages_before_a_hole_are_not_read() -> None:
    layer = Layer(2000, 1, heads=2, bias_max=16)
    layer.epsilon = 1e-9
    layer.table.ids_KP[1, 4] = -1
    decoded = check(layer)
    assert decoded.first_page_H[1] == 5
    assert decoded.omitted_mass_H[1] == layer.epsilon


@each_storage
def test_a_key_70000_tokens_back_is_heard(storage: Storage) -> None:
    layer = Layer(70_000, 1, heads=2, storage=storage, with_bounds=False)
    layer.slopes = torch.tensor([2.0**-16, 0.5])
    layer.q[:] = layer.q[:, :1]
    key = layer.q[0, 0] * (13 / layer.scale / layer.q[0, 0].square().sum())
    ids = layer.table.ids_KP[0, :1]
    write_pages(layer.keys, key[None], ids, 0)
    write_pages(layer.values, torch.full_like(key, 5.0)[None], ids, 0)
    layer.table.norms_KP[0, 0] = 2 * key.norm()
    assert check(layer).out_THD[0, 0].mean() > 1


def test_a_page_outside_the_pool_is_never_written() -> None:
    layer = Layer(130)
    layer.table.ids_KP[1, 1] = -1
    twin = layer.copy()
    with pytest.raises(IndexError):
        layer.run(reach_decode_native)
    _assert_stored_alike(layer, twin)
    assert torch.equal(layer.table.norms_KP, twin.table.norms_KP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(17, 3, 16)}, "wanted q"),
        ({"k": torch.zeros(2, 3, 16)}, "wanted k and v"),
        ({"q": torch.zeros(1, 4, 16)}, "wanted k and v"),
        ({"q": torch.zeros(1, 3, 16).double()}, "one dtype"),
        ({"slopes": torch.zeros(3).double()}, "fp32 slopes"),
        ({"values": empty_pages(3, 16, "int8")}, "as many pages"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    layer = Layer(100)
    vars(layer).update(changes)
    with pytest.raises(ValueError, match=message):
        layer.run(reach_decode)


def test_a_table_that_is_too_short() -> None:
    layer = Layer(100, with_bounds=False)
    layer.table = replace(layer.table, num_tokens=3 * PAGE_TOKENS)
    with pytest.raises(ValueError, match="do not cover"):
        layer.run(reach_decode)


def test_no_clamp_is_no_bound() -> None:
    layer = Layer(200, 3)
    assert layer.table.bounds is not None
    layer.table = replace(layer.table, bounds=replace(layer.table.bounds, clip=math.inf))
    check(layer)
