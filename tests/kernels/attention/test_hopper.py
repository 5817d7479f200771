"""FlashAttention 4's kernel: when it reads, and, on a Hopper GPU, that it is as exact as PyTorch's attention.

Its block tables are FlexAttention's, whose tests need no accelerator.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from epilogue.kernels.attention import attention, hopper, op
from epilogue.model import alibi_slopes
from kernels.attention.exactness import assert_within_twice_the_error, random_inputs, random_plan, sdpa

SCORES = "epilogue.kernels.attention.hopper_scores"


@pytest.fixture
def hopper_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has one, and FlashAttention 4."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hopper, "is_installed", lambda: True)


def chosen(
    dtype: torch.dtype = torch.bfloat16,
    *,
    head_dim: int = 64,
    num_keys: int = 300,
    documents: bool = False,
    training: bool = False,
) -> str:
    """The backend for 300 queries of a GPU; nothing is computed."""
    with FakeTensorMode():
        q, k, v = (torch.empty(1, n, 4, head_dim, dtype=dtype, device="cuda") for n in (300, num_keys, num_keys))
        starts = torch.zeros(1, 300, dtype=torch.int64, device="cuda") if documents else None
        v.requires_grad_(training)
        return op._choose(q, k, v, starts)


@pytest.mark.usefixtures("hopper_gpu")
def test_it_reads_what_it_is_made_for() -> None:
    assert chosen() == chosen(torch.float16) == chosen(head_dim=128) == "hopper"
    for other in (
        chosen(torch.float32),
        chosen(head_dim=256),
        chosen(head_dim=20),
        chosen(num_keys=hopper.MOST_KEYS + 1),
        chosen(documents=True),
        chosen(training=True),
    ):
        assert other == "flex"
    with torch.no_grad():
        assert chosen(training=True) == "flex", "a pass that is made again for its gradients begins so"


@pytest.mark.usefixtures("hopper_gpu")
def test_without_it_or_on_another_gpu_flex_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other_gpu:
        other_gpu.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        assert chosen() == "flex"
    monkeypatch.setattr(hopper, "is_installed", lambda: False)
    assert chosen() == "flex"


def test_an_installation_that_cannot_be_imported_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_installed = hopper.is_installed.__wrapped__
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert not is_installed()
    assert not caplog.records, "most machines have none"
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with caplog.at_level(logging.WARNING):
        assert not is_installed()
    assert "FlexAttention reads instead" in caplog.text


def test_slopes_are_asked_for_again_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    cutlass = ModuleType("cutlass")
    monkeypatch.setattr(cutlass, "Float32", float, raising=False)
    monkeypatch.setitem(sys.modules, "cutlass", cutlass)
    slopes = alibi_slopes(4)
    first = hopper._numbers(slopes)
    assert first == tuple(slopes.tolist()) == hopper._numbers(slopes)
    slopes.mul_(0.5)
    assert hopper._numbers(slopes) == tuple(x / 2 for x in first)
    with torch.inference_mode():
        other = slopes * 3
        assert hopper._numbers(other) == tuple(x * 1.5 for x in first)
        other.zero_()
        assert hopper._numbers(other) == (0.0,) * 4


class Numbers(np.ndarray[Any, Any]):
    """Whole numbers of the kernel's, with the bits of another type on demand."""

    def bitcast(self, dtype: type) -> np.ndarray[Any, Any]:
        return self.astype(np.int32).view(np.ndarray).view(dtype)


def product_ending_in_a_sum(x: Any, y: Any, z: Any) -> Any:
    """Rounded once: products of fp32 numbers are fp64 numbers."""
    return (np.float64(x) * np.float64(y) + np.float64(z)).astype(np.float32)


@pytest.fixture
def add_bias(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The kernel's own function on NumPy's numbers instead of a compiler's."""
    cute = SimpleNamespace(math=SimpleNamespace(fma=product_ending_in_a_sum))
    select = {"select_": lambda condition, this, other: this if condition else other}
    helpers = {"scalar_to_ssa": lambda x, dtype: x, "ssa_to_scalar": lambda x: x}
    for name, members in {
        "cutlass": {"Float32": np.float32, "Int32": np.int32, "cute": cute} | select,
        "flash_attn": {},
        "flash_attn.cute": {},
        "flash_attn.cute.utils": helpers,
    }.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, SCORES, None)  # forgotten behind the test
    del sys.modules[SCORES]
    return import_module(SCORES).add_bias  # type: ignore[no-any-return]


@pytest.mark.parametrize(("heads", "bias_max"), [(1, 8.0), (12, 8.0), (32, 16.0), (5, 9.0)])
def test_the_bias_falls_by_the_slope_a_token_however_far(
    add_bias: Callable[..., Any], heads: int, bias_max: float
) -> None:
    """But for a number that is the same for all keys of a query."""
    num_keys, num_queries = hopper.MOST_KEYS, 300
    slopes = tuple(np.float32(slope) for slope in alibi_slopes(heads, bias_max).tolist())
    lengths = SimpleNamespace(seqlen_k=num_keys, seqlen_q=num_queries)
    distances = np.unique(np.concatenate([np.arange(5000), np.geomspace(5000, num_keys - 1, 5000).astype(int)]))
    for query in (0, num_queries - 1):
        keys = num_keys - num_queries + query - distances
        keys = keys[keys >= 0].astype(np.int32).view(Numbers)
        for head in range(heads):
            biases = add_bias(
                np.float32(0), 0, head, q_idx=np.int32(query), kv_idx=keys,
                seqlen_info=lengths, aux_tensors=(), aux_scalars=slopes,
            )  # fmt: skip
            assert biases.dtype == np.float32
            wanted = -np.float64(slopes[head]) * distances[: len(keys)]
            off = np.abs((np.float64(biases) - np.float64(biases[0])) - wanted)
            assert (off <= 2.0**-23 * (np.abs(wanted) + slopes[head])).all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (12, 4), (6, 1), (5, 5), (9, 3), (1, 1)])
def test_flat_heads_go_ahead_of_steep_ones(heads: int, kv_heads: int) -> None:
    """Every head once, with its own keys, and the flattest one in what takes precedence."""
    slopes, group = alibi_slopes(heads).tolist(), heads // kv_heads
    for num_queries in (1, 300, 5000):
        q, k = torch.empty(1, num_queries, heads, 8), torch.empty(1, 9000, kv_heads, 8)
        parts = hopper.head_parts(q, k)
        taken = [range(heads)[part] for part, _ in parts]
        assert sorted(head for some in taken for head in some) == list(range(heads))
        assert slopes.index(min(slopes)) in taken[0]
        are_halves = heads % 2 == 0 and (kv_heads % 2 == 0 or kv_heads == 1)
        assert len(parts) == (2 if are_halves and num_queries == 5000 else 1)
        for some, (_, kv_part) in zip(taken, parts, strict=True):
            of_keys = range(kv_heads)[kv_part]
            assert [head // group for head in some] == [
                of_keys[i * len(of_keys) // len(some)] for i in range(len(some))
            ]


@pytest.fixture
def flash_attention(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """FlashAttention 4 on a CPU: what it is asked for, done by the reference at once."""
    calls: list[SimpleNamespace] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> None:
        calls.append(SimpleNamespace(q=q, **how))
        slopes = torch.tensor(how["aux_scalars"])
        how["out"].copy_(attention(q, k, v, slopes, scale=how["softmax_scale"], backend="reference"))

    members = {
        "cutlass": {"Float32": float},
        "flash_attn": {},
        "flash_attn.cute": {},
        "flash_attn.cute.block_sparsity": {"BlockSparseTensorsTorch": lambda *tables, block_size: tables},
        "flash_attn.cute.interface": {"_flash_attn_fwd": forward},
        SCORES: {"add_bias": None, "is_causal": None},
    }
    for name, contents in members.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(hopper, "_stream_with_precedence", lambda device: stream)
    return calls


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (3, 3)])
@pytest.mark.parametrize("planned", [False, True])
def test_every_head_is_launched_once_with_what_is_its_own(
    flash_attention: list[SimpleNamespace], heads: int, kv_heads: int, planned: bool
) -> None:
    q, k, v = random_inputs(2100, 2300, heads=heads, kv_heads=kv_heads, head_dim=8)
    slopes, plan = alibi_slopes(heads), random_plan(2100, 2300, heads) if planned else None
    ours = attention(q, k, v, slopes, scale=0.25, first_key_HN=plan, backend="hopper")
    torch.testing.assert_close(ours, attention(q, k, v, slopes, scale=0.25, backend="reference"))
    assert [call.q.shape[2] for call in flash_attention] == ([heads // 2] * 2 if heads % 2 == 0 else [heads])
    if plan is not None:
        parts = [part for part, _ in hopper.head_parts(q, k)]
        for call, part in zip(flash_attention, parts, strict=True):
            wanted = hopper.BlockTables.of(2100, 2300, q.device, plan[part])
            for found, table in zip(call.block_sparse_tensors, vars(wanted).values(), strict=True):
                assert torch.equal(found, table)


def test_packed_documents_are_refused() -> None:
    q, k, v = random_inputs(20, 20, heads=2, dtype=torch.bfloat16)
    starts = torch.zeros(1, 20, dtype=torch.int64)
    with pytest.raises(ValueError, match="flex takes them"):
        attention(q, k, v, alibi_slopes(2), scale=0.25, document_start_BT=starts, backend="hopper")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "kv_heads", "head_dim", "dtype"),
    [
        (17, 17, 5, 1, 16, torch.bfloat16),
        (128, 128, 4, 4, 64, torch.float16),
        (257, 513, 3, 3, 64, torch.bfloat16),
        (300, 1000, 8, 2, 128, torch.bfloat16),
        (1000, 1000, 12, 12, 96, torch.bfloat16),
        (2100, 2500, 8, 2, 128, torch.bfloat16),
        (2048, 2048, 6, 1, 64, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("planned", [False, True])
def test_on_a_hopper_gpu(
    queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, planned: bool
) -> None:
    if not hopper.is_installed() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU and FlashAttention 4")
    inputs = random_inputs(queries, keys, heads=heads, kv_heads=kv_heads, head_dim=head_dim, batch=2, dtype=dtype)
    plan = random_plan(queries, keys, heads) if planned else None
    options = {"scale": head_dim**-0.5, "first_key_HN": None if plan is None else plan.cuda()}
    on_device, slopes = [x.cuda() for x in inputs], alibi_slopes(heads).cuda()
    truth = attention(*(x.double() for x in on_device), slopes, backend="reference", **options)
    ours = attention(*on_device, slopes, backend="hopper", **options)
    assert_within_twice_the_error([ours], [sdpa(*on_device, slopes, **options)], [truth])


@pytest.mark.gpu
def test_a_key_70000_tokens_back_is_heard_on_a_hopper_gpu() -> None:
    if not hopper.is_installed() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU and FlashAttention 4")
    q, k, v = (x.cuda() for x in random_inputs(300, 70_300, heads=2, head_dim=64, dtype=torch.bfloat16))
    k[:, 5], v[:, 5], q[:] = 4.0, 9.0, 0.5
    slopes = torch.tensor([2.0**-16, 0.5], device="cuda")
    truth = attention(q.double(), k.double(), v.double(), slopes, scale=0.125, backend="reference")
    assert (truth[0, :, 0].mean(-1) > 1).all(), "the far key was meant to matter"
    ours = attention(q, k, v, slopes, scale=0.125, backend="hopper")
    assert (ours.double() - truth).abs().max() <= torch.finfo(torch.bfloat16).eps * truth.abs().max()
