"""Compile the GPU kernels for GPUs that need not be there; run by test_packed.py in a process of its own."""

import itertools
import os
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from epilogue.kernels.quant_linear.packed_kernels import packed_kernel
from epilogue.kernels.quant_linear.row_kernels import row_kernel

SHARED_MEMORY_BYTES = {80: 166_912, 89: 101_376, 90: 232_448}
ROW_CASES = [(4096, 4, 1, 8, 4), (16384, 4, 1, 4, 16), (4096, 8, 4, 4, 8)]
"""Inputs, bits, rows, outputs of a tile, warps."""


def compile_for(capability: int, kernel: Any, dtypes: dict[str, str], constants: dict[str, Any], num_warps: int) -> Any:
    types = {"x_ptr": f"*{dtypes['x']}", "out_ptr": f"*{dtypes['out']}", "order_ptr": "*i32", "onto_ptr": "*bf16"}
    types |= {"codes_ptr": "*u8", "scale_ptr": "*fp16", "zero_ptr": "*i16"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    wide = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")}
    source = ASTSource(kernel, signature, {(names.index(name),): x for name, x in constants.items()}, wide)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES[capability]
    return compiled


def compile_packed(capabilities: list[int]) -> None:
    for capability, dtype, bits, rows in itertools.product(capabilities, ("bf16", "fp16", "fp32"), (4, 8), (16, 64)):
        constants = {"GROUP": 128, "BITS": bits, "BLOCK_R": rows, "BLOCK_O": 32, "BLOCK_BYTES": 64}
        compile_for(capability, packed_kernel, {"x": dtype, "out": "fp32"}, constants, 4)
        print(capability, dtype, bits, rows, flush=True)


def compile_row(capabilities: list[int]) -> None:
    for capability, (inputs, bits, rows, block, num_warps) in itertools.product(capabilities, ROW_CASES):
        constants = {
            "INPUTS": inputs, "GROUP": 128, "BITS": bits, "HAS_ORDER": rows > 1, "ROWS": rows, "BLOCK_O": block,
            "BLOCK_L": inputs * bits // 128, "TILES": 2,
            "CLIP": 6.0, "HAS_ONTO": rows > 1, "IS_EARLY": capability >= 90, "IS_COMPILED": True,
        }  # fmt: skip
        compiled = compile_for(capability, row_kernel, {"x": "bf16", "out": "bf16"}, constants, num_warps)
        # What it is fast by: 16 bytes of codes in one instruction.
        assert "ld.global.v4" in compiled.asm["ptx"]
        assert "dp4a" in compiled.asm["ptx"]
        print(capability, inputs, bits, rows, flush=True)


def main(capabilities: list[int]) -> None:
    compile_packed(capabilities)
    compile_row(capabilities)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as os.environ["TRITON_CACHE_DIR"]:
        main(list(map(int, sys.argv[1].split(","))))
