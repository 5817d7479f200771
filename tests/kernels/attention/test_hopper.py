"""FlashAttention 4's kernel: when it reads, and, on a Hopper GPU, that it is as exact as PyTorch's attention.

Its block tables are FlexAttention's, whose tests need no accelerator.
"""

import logging
import sys
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from epilogue.kernels.attention import attention, hopper, op
from epilogue.model import alibi_slopes
from kernels.attention.exactness import assert_within_twice_the_error, random_inputs, random_plan, sdpa


@pytest.fixture
def hopper_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has one, and FlashAttention 4."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(hopper, "is_installed", lambda: True)


def chosen(
    dtype: torch.dtype = torch.bfloat16, *, head_dim: int = 64, documents: bool = False, training: bool = False
) -> str:
    """The backend for 300 queries of a GPU; nothing is computed."""
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 300, 4, head_dim, dtype=dtype, device="cuda") for _ in range(3))
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
        chosen(documents=True),
        chosen(training=True),
    ):
        assert other == "flex"


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
