"""Compile the kernels for GPUs that need not be there; run by test_split.py in a process of its own."""

import itertools
import math
import os
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from epilogue.kernels.paged_attention import allocate_pages, split
from epilogue.kernels.paged_attention.chunk_bounds_kernels import (
    page_scores_kernel,
    tile_exponents_kernel,
    tile_prefixes_kernel,
)
from epilogue.kernels.paged_attention.chunk_kernels import read_pages_kernel, write_chunk_kernel
from epilogue.kernels.paged_attention.take_in_kernels import take_in_kernel
from kernels.paged_attention.books import STORAGES

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
}
SHARED_MEMORY_BYTES = {80: 166_912, 89: 101_376, 90: 232_448}


def compile_for(capability: int, kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> int:
    """Bytes of shared memory that the kernel takes."""
    arguments = {name: types.get(name, "i32") for name in kernel.arg_names if name not in constants}
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): x for name, x in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).metadata.shared


def compile_visit(capability: int, storage: Any, dtype: torch.dtype, head_dim: int, block_rows: int) -> int:
    pages = allocate_pages(1, head_dim, storage)
    constants = split._pool_switches(pages, pages) | {"HAS_FIRST": dtype == torch.float32, "BLOCK_R": block_rows}
    if dtype == torch.bfloat16:  # Triton compiles an argument that is 1 as a constant
        constants |= dict.fromkeys(("num_kv_heads", "num_columns", "num_rows", "num_queries", "num_splits"), 1)
    data = "*" + TRITON_TYPES[pages.data_PWD.dtype]
    is_bf16 = dtype == torch.bfloat16 and storage != "float32"
    types = {
        f"{part}_ptr": "*fp32" for part in ("k_scale", "k_zero", "v_scale", "v_zero", "slopes", "out", "max", "sum")
    }
    types |= {"k_ptr": data, "v_ptr": data, "q_ptr": "*bf16" if is_bf16 else "*fp32", "scale": "fp32"}
    types |= {"table_ptr": "*i32", "num_keys_ptr": "*i64", "first_ptr": "*i64"}
    return compile_for(capability, split.visit_pages_kernel, types, constants)


def compile_row(capability: int, dtype: torch.dtype, head_dim: int) -> int:
    pages, q_BKRD = allocate_pages(1, head_dim, "int8"), torch.empty(1, dtype=dtype)
    constants = split._row_switches(pages, q_BKRD) | {"HAS_FIRST": dtype == torch.float32, "IS_COMPILED": True}
    if dtype == torch.bfloat16:
        constants |= dict.fromkeys(("num_heads", "num_columns", "num_splits", "columns_a_split"), 1)
    types = dict.fromkeys(("k_scale_ptr", "v_scale_ptr", "slopes_ptr", "out_ptr", "max_ptr", "sum_ptr"), "*fp32")
    types |= {"k_ptr": "*i8", "v_ptr": "*i8", "q_ptr": "*" + TRITON_TYPES[dtype], "scale": "fp32"}
    types |= {"table_ptr": "*i32", "num_keys_ptr": "*i64", "first_ptr": "*i64"}
    return compile_for(capability, split.visit_int8_pages_of_a_row_kernel, types, constants)


def compile_take_in(capability: int, storage: Any, dtype: torch.dtype, head_dim: int) -> int:
    pages = allocate_pages(1, head_dim, storage)
    block = triton.next_power_of_2(head_dim)
    constants = {"PAGE_TOKENS": 128, "HEAD_DIM": head_dim, "BLOCK_D": block, "BLOCK_P": 1024, "GROUP": 2}
    constants |= dict.fromkeys(("K_HAS_SCALE", "V_HAS_SCALE"), storage == "int8")
    constants |= {"SCALE": 0.1, "LOG_EPSILON": -13.8, "ROUNDING": 1e-6, "LEAST": 1e-14}
    constants |= {"CLIP": 6.0 if dtype == torch.bfloat16 else None}
    if dtype == torch.bfloat16:
        constants |= dict.fromkeys(("num_kv_heads", "num_columns", "q_stride"), 1) | {"LOG_EPSILON": -math.inf}
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "queries_ptr"), "*" + TRITON_TYPES[dtype])
    types |= dict.fromkeys(("k_data_ptr", "v_data_ptr"), "*" + TRITON_TYPES[pages.data_PWD.dtype])
    types |= dict.fromkeys(("k_scale_ptr", "v_scale_ptr", "stored_ptr"), "*fp32")
    types |= dict.fromkeys(("running_ptr", "costs_ptr", "nats_ptr"), "*fp64")
    types |= dict.fromkeys(("num_keys_ptr", "live_ptr", "first_ptr"), "*i64") | {"table_ptr": "*i32"}
    return compile_for(capability, take_in_kernel, types, constants)


def compile_chunk(capability: int, storage: Any, dtype: torch.dtype, head_dim: int) -> int:
    """Both ways between a chunk and its pages."""
    pages = allocate_pages(1, head_dim, storage)
    constants = {"PAGE_TOKENS": 128, "HEAD_DIM": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim)}
    constants |= dict.fromkeys(("K_HAS_SCALE", "V_HAS_SCALE"), storage == "int8")
    types = dict.fromkeys(("k_data_ptr", "v_data_ptr"), "*" + TRITON_TYPES[pages.data_PWD.dtype])
    types |= dict.fromkeys(("k_scale_ptr", "v_scale_ptr", "stored_ptr", "norms_ptr"), "*fp32") | {"ids_ptr": "*i64"}
    types |= dict.fromkeys(("k_ptr", "v_ptr", "k_out_ptr", "v_out_ptr"), "*" + TRITON_TYPES[dtype])
    types |= {"first_ptr": "*i64"}
    reading = compile_for(capability, read_pages_kernel, types, constants | {"HAS_FIRST": True})
    return max(reading, compile_for(capability, write_chunk_kernel, types, constants | {"BLOCK_W": 32}))


def compile_bounds(capability: int, dtype: torch.dtype, head_dim: int) -> int:
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim), "GROUP": 2}
    tile = {"BLOCK_T": 32, "TILE_TOKENS": 256, "SCALE": 0.1, "ROUNDING": 1e-6, "LEAST": 1e-14}
    types = dict.fromkeys(("slopes_ptr", "most_ptr", "at_zero_ptr", "at_most_ptr"), "*fp64")
    types |= {"q_ptr": "*" + TRITON_TYPES[dtype], "k_ptr": "*fp32"}
    exponents = compile_for(capability, tile_exponents_kernel, types, constants | tile)
    names = ("at_zero_ptr", "at_most_ptr", "largest_ptr", "slopes_ptr", "mass_ptr")
    prefix = {"TILE_TOKENS": 256, "PAGE_TOKENS": 128, "BLOCK_P": 512}
    prefix |= {"EPSILON": 1e-6, "LOG_EPSILON": -13.8, "SLACK": 0.01}
    compile_for(capability, tile_prefixes_kernel, dict.fromkeys(names, "*fp64") | {"first_key_ptr": "*i64"}, prefix)
    types = dict.fromkeys(("k_ptr", "turned_ptr", "offset_ptr", "error_ptr", "scores_ptr"), "*fp32") | {"clip": "fp32"}
    page = {"PAGE_TOKENS": 128, "error_stride": 1} | constants
    turned, keys = ({"BLOCK_W": rows, "IS_TURNED": rows == 32} for rows in (32, 128))
    return max(exponents, *(compile_for(capability, page_scores_kernel, types, page | x) for x in (turned, keys)))


def main(capabilities: list[int], head_dims: list[int], blocks: list[int]) -> None:
    for capability in capabilities:
        types = {f"{part}_ptr": "*fp32" for part in ("part", "max", "sum", "out")}
        constants = {"HEAD_DIM": 96, "BLOCK_D": 128, "BLOCK_P": 32, "ALLOWS_EARLY": capability >= 90}
        compile_for(capability, split.join_splits_kernel, types, constants)
        cases = itertools.product(STORAGES, (torch.float32, torch.bfloat16), head_dims, blocks)
        for storage, dtype, head_dim, block_rows in cases:
            shared = compile_visit(capability, storage, dtype, head_dim, block_rows)
            if storage != "int4":
                shared = max(shared, compile_take_in(capability, storage, dtype, head_dim))
            if storage != "int4" and dtype == torch.bfloat16:
                shared = max(shared, compile_chunk(capability, storage, dtype, head_dim))
            if storage == "int8":
                shared = max(shared, compile_row(capability, dtype, head_dim))
            if storage == "float32":
                shared = max(shared, compile_bounds(capability, dtype, head_dim))
            print(capability, storage, dtype, head_dim, block_rows, shared, flush=True)
            assert shared <= SHARED_MEMORY_BYTES[capability]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as os.environ["TRITON_CACHE_DIR"]:
        main(*(list(map(int, argument.split(","))) for argument in sys.argv[1:]))
