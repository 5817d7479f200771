"""The quantised linear layer in C++ means what the reference means, on every instruction set and at every odd shape."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epilogue.kernels.quant_linear import QuantWeight, dense, quant_linear
from epilogue.kernels.quant_linear.native import MOST_ROWS, dequantize_native, quant_linear_native
from epilogue.kernels.quant_linear.packing import dequantize
from kernels.native_cases import each_instruction_set, needs_extension
from kernels.quant_linear.exactness import assert_is_as_exact
from kernels.quant_linear.weights import random_weight

pytestmark = needs_extension
EPSILON = torch.finfo(torch.float32).eps


@st.composite
def weights(draw: st.DrawFn) -> QuantWeight:
    """Of any bits, groups, order and scales; symmetric or not; 4 bits want an even number of inputs."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    inputs = 2 * draw(st.integers(1, 300))
    group_size = draw(st.sampled_from([1, 3, 8, 16, 32, 48, 64, 128, 256, inputs]))
    weight = random_weight(
        draw(st.integers(1, 13)),
        inputs,
        bits=draw(st.sampled_from([4, 8])),
        group_size=group_size,
        has_order=draw(st.booleans()),
        scale_dtype=draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32])),
    )
    if draw(st.booleans()):
        weight = replace(weight, zeros_OG=torch.full_like(weight.zeros_OG, 2 ** (weight.bits - 1)))
    return weight


def assert_within_rounding(out_RO: Tensor, x_RI: Tensor, weight: QuantWeight) -> None:
    """Codes and zero points are multiplied apart, so fp32 rounds relative to both and not to their difference."""
    truth_RO = quant_linear(x_RI.double(), weight, backend="reference")
    sizes_OI = dense(replace(weight, zeros_OG=-weight.zeros_OG), dtype=torch.float64)
    assert ((out_RO.double() - truth_RO).abs() <= 8 * EPSILON * (x_RI.double().abs() @ sizes_OI.T)).all()


@each_instruction_set
@settings(max_examples=50, deadline=None)
@given(weight=weights(), rows=st.sampled_from([1, 2, 3, 5, 7, MOST_ROWS + 1]))
def test_it_is_the_product_with_the_dense_weight(instructions: str, weight: QuantWeight, rows: int) -> None:
    x_RI = torch.randn(rows, weight.in_features)
    assert_within_rounding(quant_linear_native(x_RI, weight, instructions=instructions), x_RI, weight)


@each_instruction_set
@settings(max_examples=36, deadline=None)
@given(weight=weights(), start=st.integers(0, 5))
def test_tiles_have_the_very_numbers(instructions: str, weight: QuantWeight, start: int) -> None:
    rows = slice(min(start, weight.out_features - 1), weight.out_features)
    out_OI = torch.empty(rows.stop - rows.start, weight.in_features)
    ours = dequantize_native(weight, rows, out_OI=out_OI, instructions=instructions)
    assert torch.equal(ours, dequantize(weight, rows=rows))


@each_instruction_set
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 129, 4096), (4, 63, 1000), (MOST_ROWS + 1, 130, 512)])
def test_as_exact_as_pytorch(instructions: str, bits: int, rows: int, outputs: int, inputs: int, threads: int) -> None:
    torch.set_num_threads(threads)
    weight = random_weight(outputs, inputs, bits=bits, group_size=128, has_order=True)
    weight = replace(weight, zeros_OG=torch.full_like(weight.zeros_OG, 2 ** (bits - 1)))
    for x_RI in (torch.randn(rows, inputs), torch.randn(rows, inputs).bfloat16()):
        assert_is_as_exact(quant_linear_native(x_RI, weight, instructions=instructions), x_RI, weight)


@each_instruction_set
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [2.0**-70, 1.0, 2.0**100])
def test_inputs_of_any_size(instructions: str, bits: int, size: float) -> None:
    weight = random_weight(9, 384, bits=bits, group_size=128)
    x_RI = torch.randn(2, 384) * size
    x_RI[:, 128:256] *= 2.0**-40
    x_RI[1] = 0
    # The second: small inputs are exact beside others like them, whatever stands elsewhere.
    for row_RI in (x_RI, torch.where(torch.arange(384) // 128 == 1, x_RI, 0.0)):
        assert_within_rounding(quant_linear_native(row_RI, weight, instructions=instructions), row_RI, weight)


@each_instruction_set
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("byte", [0, 255])
@pytest.mark.parametrize("value", [1.0, -1.0, 2 - 2.0**-23, -2 + 2.0**-23, 1.9921])
def test_the_largest_numbers_do_not_overflow(instructions: str, bits: int, byte: int, value: float) -> None:
    weight, x_RI = random_weight(5, 256, bits=bits, group_size=128), torch.full((1, 256), value)
    weight = replace(weight, codes_OI=torch.full_like(weight.codes_OI, byte))
    for zero in (0, 1, 2**bits):
        weight = replace(weight, zeros_OG=torch.full_like(weight.zeros_OG, zero))
        truth = quant_linear(x_RI.double(), weight, backend="reference")
        largest = 512 * 2**bits * weight.scales_OG.max().double()
        out = quant_linear_native(x_RI, weight, instructions=instructions)
        torch.testing.assert_close(out.double(), truth, rtol=0, atol=8 * EPSILON * float(largest))


@each_instruction_set
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_input_that_is_not_finite_is_heard(instructions: str, value: float) -> None:
    x_RI = torch.randn(2, 256)
    x_RI[1, 77] = value
    out_RO = quant_linear_native(x_RI, random_weight(6, 256), instructions=instructions)
    assert out_RO[0].isfinite().all()
    assert not out_RO[1].isfinite().any()


@each_instruction_set
def test_a_row_does_not_depend_on_its_neighbours(instructions: str) -> None:
    weight, x_RI = random_weight(30, 300, group_size=64), torch.randn(7, 300)
    whole_RO = quant_linear_native(x_RI, weight, instructions=instructions)
    for row, out in zip(x_RI, whole_RO, strict=True):
        assert torch.equal(quant_linear_native(row[None], weight, instructions=instructions)[0], out)


@each_instruction_set
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_stays_in_its_output(instructions: str, value: float) -> None:
    weight = random_weight(9, 128, group_size=32)
    weight.scales_OG[4, 2] = value
    out = quant_linear_native(torch.randn(2, 128), weight, instructions=instructions)
    assert not out[:, 4].isfinite().any()
    assert out[:, [0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_subnormal_scales_count() -> None:
    weight = random_weight(4, 64, group_size=32)
    weight = replace(weight, scales_OG=torch.full_like(weight.scales_OG, 2.0**-24))
    x_RI = torch.randn(2, 64)
    assert_within_rounding(quant_linear_native(x_RI, weight), x_RI, weight)


def test_a_gradient_goes_through_pytorch() -> None:
    weight, x_RI = random_weight(8, 64), torch.randn(2, 64, requires_grad=True)
    quant_linear(x_RI, weight).sum().backward()
    assert x_RI.grad is not None
    torch.testing.assert_close(x_RI.grad, torch.ones(2, 8) @ dequantize(weight))


def test_a_wrong_call_says_what_is_wrong() -> None:
    weight = random_weight(8, 32)
    with pytest.raises(ValueError, match="wanted rows and scales in fp32"):
        quant_linear_native(torch.zeros(1, 32, dtype=torch.float64), weight)
    with pytest.raises(ValueError, match="no kernels of that name"):
        quant_linear_native(torch.zeros(1, 32), weight, instructions="abacus")
