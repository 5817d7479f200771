"""The GPU kernels under Triton's interpreter, which must be chosen before it is imported: run by test_packed.py."""

import os
from dataclasses import replace

os.environ["TRITON_INTERPRET"] = "1"

import torch

from epilogue.kernels.quant_linear import Ending, dense, finish, pack_codes, quant_linear, unpack_codes
from epilogue.kernels.quant_linear.row import Launch, quant_linear_row
from kernels.quant_linear.exactness import assert_as_exact_as_pytorch
from kernels.quant_linear.weights import random_weight

CASES = [
    (1, 8, 16, {}),
    (3, 40, 48, {"group_size": 32}),
    (64, 33, 300, {"bits": 8, "group_size": 128}),
    (17, 64, 256, {"group_size": 16, "has_order": True}),
    (5, 70, 130, {"group_size": 130, "scale_dtype": torch.float32}),
    (2, 32, 96, {"bits": 8, "group_size": 1}),
]
ROW_CASES = [
    (1, 33, 256, Launch(8, 2, 1), {"group_size": 128, "has_order": True}),
    (4, 9, 96, Launch(4, 3, 1), {"group_size": 32}),
    (2, 17, 200, Launch(8, 1, 4), {"group_size": 64}),
    (3, 12, 212, Launch(4, 2, 4), {"bits": 8, "group_size": 16}),
    (1, 5, 1000, Launch(8, 1, 4), {"group_size": 1000, "scale_dtype": torch.float32}),
    (2, 20, 128, Launch(4, 2, 1), {"bits": 8, "group_size": 128, "has_order": True}),
]


def run_row() -> None:
    for i, (rows, outputs, inputs, launch, options) in enumerate(ROW_CASES):
        weight = random_weight(outputs, inputs, **options)
        x_RI = torch.randn(rows, inputs).to((torch.bfloat16, torch.float16)[i % 2])
        assert_as_exact_as_pytorch(x_RI, weight, "row")
        assert torch.equal(quant_linear_row(x_RI, weight, launch=launch), quant_linear(x_RI, weight, backend="row"))


def keeps_what_is_not_finite() -> None:
    """And sizes far from one, side by side."""
    weight = random_weight(8, 128)
    for value in (float("nan"), float("inf")):
        x_RI = torch.zeros(2, 128, dtype=torch.bfloat16)
        x_RI[1, 77] = value
        out_RO = quant_linear(x_RI, weight, backend="row")
        assert out_RO[0].eq(0).all()
        assert out_RO[1].isnan().all()
    sizes_I = 10.0 ** torch.linspace(-38, 34, 128)
    for x_RI in (sizes_I[None], sizes_I.flip(0)[None], torch.full((1, 128), -1.7e38)):
        assert_as_exact_as_pytorch((torch.randn(1, 128).sign() * x_RI).bfloat16(), weight, "row")


def stays_within_its_bound() -> None:
    """Inputs beside one that is far larger and does not count: what a step of their lane leaves of them."""
    weight = random_weight(16, 256, group_size=64)
    x_RI = torch.randn(1, 256).mul(2**-9).bfloat16()
    x_RI[0, ::32] = 1.0
    codes_OI = unpack_codes(weight.codes_OI, 4)
    codes_OI[:, ::32] = weight.zeros_OG.repeat_interleave(2, dim=1).clamp(max=15).to(torch.uint8)
    weight = replace(weight, codes_OI=pack_codes(codes_OI, 4), zeros_OG=weight.zeros_OG.clamp(max=15))
    truth = quant_linear(x_RI.double(), weight, backend="reference")
    rounding = 2**-15 * dense(weight, dtype=torch.float64).abs().sum(dim=1) + 2**-8 * truth.abs()
    assert ((quant_linear(x_RI, weight, backend="row").double() - truth).abs() <= rounding).all()


def rounds_once_behind_its_ending() -> None:
    weight = random_weight(20, 128, group_size=128)
    x_RI, onto_RO = torch.randn(2, 128).bfloat16(), torch.randn(20, 2).bfloat16().T
    product_RO = quant_linear(x_RI.double(), weight, backend="reference")
    clip = float(product_RO.abs().median())
    for ending in (Ending(clip=clip), Ending(onto_RO=onto_RO), Ending(clip=clip, onto_RO=onto_RO)):
        truth = finish(product_RO, replace(ending, onto_RO=None if ending.onto_RO is None else onto_RO.double()))
        out_RO = quant_linear(x_RI, weight, ending=ending, backend="row").double()
        assert ((out_RO - truth).abs() <= 2**-8 * truth.abs() + 2**-15 * product_RO.abs().max()).all()
    x_RI[1] = float("nan")
    assert quant_linear(x_RI, weight, ending=Ending(clip=clip), backend="row")[1].isnan().all()


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    for rows, outputs, inputs, options in CASES:
        weight = random_weight(outputs, inputs, **options)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert_as_exact_as_pytorch(torch.randn(rows, inputs).to(dtype), weight, "packed")
    run_row()
    keeps_what_is_not_finite()
    stays_within_its_bound()
    rounds_once_behind_its_ending()
    print("done")


if __name__ == "__main__":
    main()
