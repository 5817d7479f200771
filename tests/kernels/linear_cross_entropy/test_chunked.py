"""Chunk by chunk, the loss and its gradients are those of all logits at once."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from epilogue.kernels.linear_cross_entropy import IGNORED, linear_cross_entropy


def material(rows: int, vocab: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x_RC = torch.randn(rows, 24, generator=generator, dtype=torch.float64)
    weight_VC = torch.randn(vocab, 24, generator=generator, dtype=torch.float64)
    targets_R = torch.randint(vocab, (rows,), generator=generator)
    return x_RC.to(dtype), weight_VC.to(dtype), targets_R


def loss_and_gradients(x_RC: Tensor, weight_VC: Tensor, targets_R: Tensor, **settings: Any) -> list[Tensor]:
    x_RC, weight_VC = (leaf.detach().clone().requires_grad_() for leaf in (x_RC, weight_VC))
    loss = linear_cross_entropy(x_RC, weight_VC, targets_R, **settings)
    # Not alone in the graph, and not with a gradient of 1.
    (loss * 3).backward()
    assert x_RC.grad is not None
    assert weight_VC.grad is not None
    return [loss.detach(), x_RC.grad, weight_VC.grad]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 64), st.floats(0.1, 3), st.data())
def test_it_is_the_reference(rows: int, vocab: int, chunk_rows: int, factor: float, data: st.DataObject) -> None:
    x_RC, weight_VC, targets_R = material(rows, vocab, seed=rows)
    ignored = data.draw(st.lists(st.integers(1, rows - 1), unique=True)) if rows > 1 else []
    targets_R[ignored] = IGNORED
    wanted = loss_and_gradients(x_RC, weight_VC, targets_R, factor=factor, backend="reference")
    got = loss_and_gradients(x_RC, weight_VC, targets_R, factor=factor, chunk_rows=chunk_rows)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_errs_no_more_than_the_reference(dtype: torch.dtype) -> None:
    inputs = material(513, 300, dtype=dtype)
    exact = loss_and_gradients(*(x.double() if x.is_floating_point() else x for x in inputs), backend="reference")
    plain = loss_and_gradients(*inputs, backend="reference")
    chunked = loss_and_gradients(*inputs, chunk_rows=100)
    for mine, theirs, truth in zip(chunked, plain, exact, strict=True):
        assert mine.dtype == theirs.dtype
        least = torch.finfo(torch.float32).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + least


def test_the_gradient_of_the_weight_is_summed_wide() -> None:
    """1,024 chunks of bf16 rows: sums in bf16 would stop to grow on the way."""
    x_RC = torch.ones(1024, 24, dtype=torch.bfloat16)
    weight_VC = torch.zeros(3, 24, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(x_RC, weight_VC, torch.zeros(1024, dtype=torch.int64), chunk_rows=1).backward()
    assert weight_VC.grad is not None
    wanted = torch.tensor([-2 / 3, 1 / 3, 1 / 3])[:, None].expand(3, 24).bfloat16()
    torch.testing.assert_close(weight_VC.grad, wanted, rtol=0.01, atol=0)


def test_under_autocast_products_are_narrow_and_gradients_are_not() -> None:
    inputs = material(70, 40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_and_gradients(*inputs, chunk_rows=32)
        wanted = loss_and_gradients(*inputs, backend="reference")
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)


def test_only_what_learns_gets_a_gradient() -> None:
    x_RC, weight_VC, targets_R = material(10, 7)
    x_RC.requires_grad_()
    linear_cross_entropy(x_RC, weight_VC, targets_R).backward()
    assert x_RC.grad is not None
    assert weight_VC.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(x_RC, weight_VC, targets_R).requires_grad


def test_no_target_is_no_number() -> None:
    x_RC, weight_VC, _ = material(3, 7)
    assert linear_cross_entropy(x_RC, weight_VC, torch.full((3,), IGNORED)).isnan()


# The compiler does so to every function of this kind.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles_whole() -> None:
    """The loss is compiled with the model's head, without a break, as in training on a GPU."""
    inputs = material(50, 30, dtype=torch.float32)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    leaf = inputs[0].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(leaf, *inputs[1:], chunk_rows=20).backward()
        wanted = loss_and_gradients(*inputs, chunk_rows=20)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad * 3, wanted[1], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x_RC": torch.zeros(2, 5)}, r"wanted rows \[R, C\] and a weight \[V, C\], got \(2, 5\), \(3, 4\)"),
        ({"targets_R": torch.zeros(3, dtype=torch.int64)}, r"targets must be int64 \[2\]"),
        ({"targets_R": torch.zeros(2)}, r"got torch.float32 \(2,\)"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], sentence: str) -> None:
    call = {"x_RC": torch.zeros(2, 4), "weight_VC": torch.zeros(3, 4), "targets_R": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=sentence):
        linear_cross_entropy(**(call | changes))
