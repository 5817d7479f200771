"""The linear layer in C++ is as exact as PyTorch's, on every instruction set and at every odd shape."""

import pytest
import torch
import torch.nn.functional as F

from epilogue.kernels.few_row_linear import MOST_ROWS, few_row_linear
from epilogue.kernels.few_row_linear.native import few_row_linear_native
from kernels.attention.exactness import assert_within_twice_the_error
from kernels.native_cases import each_instruction_set, needs_extension


@needs_extension
@each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (1, 512, 63), (3, 1000, 129), (7, 65, 8), (16, 64, 5)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_as_exact_as_pytorch(
    instructions: str, dtype: torch.dtype, rows: int, inputs: int, outputs: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    ours = few_row_linear_native(x, weight, bias, instructions=instructions)
    truth = F.linear(x.double(), weight.double(), bias.double())
    assert ours.dtype == dtype
    assert_within_twice_the_error([ours], [F.linear(x, weight, bias)], [truth])


@needs_extension
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, weight = torch.randn(MOST_ROWS, 130), torch.randn(70, 130)
    whole = few_row_linear_native(x, weight, None)
    for row, out in zip(x, whole, strict=True):
        assert torch.equal(few_row_linear_native(row, weight, None), out)


@needs_extension
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_output(value: float) -> None:
    x, weight = torch.randn(2, 100), torch.randn(9, 100)
    weight[4, 7] = value
    out = few_row_linear_native(x, weight, None)
    assert not out[:, 4].isfinite().any()
    assert out[:, [0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("rows", [0, 1, MOST_ROWS + 1])
def test_without_gradients_or_with_them_it_is_the_linear_layer(rows: int) -> None:
    x, weight = torch.randn(2, rows, 33), torch.randn(5, 33, requires_grad=True)
    expected = F.linear(x, weight)
    with torch.no_grad():
        torch.testing.assert_close(few_row_linear(x, weight), expected)
    out = few_row_linear(x, weight)
    assert out.requires_grad
    torch.testing.assert_close(out, expected)


@needs_extension
def test_a_wrong_call_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="wanted x"):
        few_row_linear_native(torch.zeros(1, 4), torch.zeros(3, 5), None)
    with pytest.raises(ValueError, match="no kernels of that name"):
        few_row_linear_native(torch.zeros(1, 5), torch.zeros(3, 5), None, instructions="abacus")


@needs_extension
@each_instruction_set
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_rows_on_narrow_weights(instructions: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 130), torch.randn(70, 130).to(dtype)
    weight[0, :4] = torch.tensor([6e-8, -3e-5, 60000.0, -0.0])  # subnormal and large as fp16
    ours = few_row_linear_native(x, weight, None, instructions=instructions)
    wide = weight.float()
    assert_within_twice_the_error([ours], [F.linear(x, wide)], [F.linear(x.double(), wide.double())])
    with torch.no_grad():
        torch.testing.assert_close(few_row_linear(x, wide, narrow_FC=weight, backend="native"), F.linear(x, wide))
