"""The packed kernel under Triton's interpreter, which must be chosen before it is imported: run by test_packed.py."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

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


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    for rows, outputs, inputs, options in CASES:
        weight = random_weight(outputs, inputs, **options)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert_as_exact_as_pytorch(torch.randn(rows, inputs).to(dtype), weight, "packed")
    print("done")


if __name__ == "__main__":
    main()
