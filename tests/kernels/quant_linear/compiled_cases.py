"""Compile the packed kernel for GPUs that need not be there; run by test_packed.py in a process of its own."""

import itertools
import os
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from epilogue.kernels.quant_linear.packed_kernels import packed_kernel

SHARED_MEMORY_BYTES = {80: 166_912, 89: 101_376, 90: 232_448}


def main(capabilities: list[int]) -> None:
    for capability, dtype, bits, rows in itertools.product(capabilities, ("bf16", "fp16", "fp32"), (4, 8), (16, 64)):
        constants = {"GROUP": 128, "BITS": bits, "BLOCK_R": rows, "BLOCK_O": 32, "BLOCK_BYTES": 64}
        types = {"x_ptr": f"*{dtype}", "codes_ptr": "*u8", "scale_ptr": "*fp16", "zero_ptr": "*i16", "out_ptr": "*fp32"}
        names = packed_kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        source = ASTSource(packed_kernel, signature, {(names.index(name),): x for name, x in constants.items()})
        shared = triton.compile(source, target=GPUTarget("cuda", capability, 32)).metadata.shared
        print(capability, dtype, bits, rows, shared, flush=True)
        assert shared <= SHARED_MEMORY_BYTES[capability]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as os.environ["TRITON_CACHE_DIR"]:
        main(list(map(int, sys.argv[1].split(","))))
