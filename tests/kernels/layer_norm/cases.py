"""Shapes for the norm's kernel; run as a module under Triton's interpreter, chosen before it is imported."""

import torch
import torch.nn.functional as F

from epilogue.kernels.layer_norm import layer_norm, sum_layer_norm
from kernels.attention.exactness import assert_within_twice_the_error


def assert_as_exact_as_pytorch(rows: int, columns: int, *, dtype: torch.dtype, has_bias: bool, device: str) -> None:
    torch.manual_seed(rows + columns)
    x, gain, bias = (torch.randn(*shape).to(device, dtype) for shape in ((rows, columns), (columns,), (columns,)))
    x[::2] = x[::2] * 0.01 + 30  # means far from zero
    given = bias if has_bias else None
    term = torch.randn(rows, columns).to(device, dtype)
    with torch.no_grad():
        ours = layer_norm(x[None], gain, given, eps=1e-5, backend="triton")[0]
        total, of_sum = sum_layer_norm(x[None], term[None], gain, given, eps=1e-5, backend="triton")
        assert torch.equal(total[0], x + term)
        assert torch.equal(of_sum, layer_norm(total, gain, given, eps=1e-5, backend="triton"))
    assert ours.dtype == dtype
    theirs, truth = (
        F.layer_norm(y.to(wide), (columns,), gain.to(wide), None if given is None else given.to(wide), 1e-5)
        for y, wide in ((x, dtype), (x.double(), torch.float64))
    )
    assert_within_twice_the_error([ours], [theirs], [truth])


if __name__ == "__main__":
    for has_bias in (True, False):
        for rows, columns in ((1, 1), (1, 4096), (3, 100), (40, 384)):
            assert_as_exact_as_pytorch(rows, columns, dtype=torch.float32, has_bias=has_bias, device="cpu")
    print("done")
