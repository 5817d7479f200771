"""Shapes for the block tables' kernel; run as a module under Triton's interpreter, chosen before it is imported."""

from dataclasses import astuple

import torch

from epilogue.kernels.attention.block_tables import BlockTables, write_down_by_kernel
from kernels.attention.exactness import random_plan

LENGTHS = [(1, 1), (128, 128), (129, 129), (300, 1000), (257, 513), (1, 700), (130, 256), (700, 140_000)]


def assert_same_tables(num_queries: int, num_keys: int, *, heads: int | None, device: str) -> None:
    torch.manual_seed(num_queries + num_keys)
    plan = None if heads is None else random_plan(num_queries, num_keys, heads)
    wanted = BlockTables.of(num_queries, num_keys, torch.device("cpu"), plan)
    place = torch.device(device)
    given = None if plan is None else plan.to(place).T.contiguous().T  # as a kernel must not take it for granted
    got = write_down_by_kernel(num_queries, num_keys, place, given)
    for one, other in zip(astuple(wanted), astuple(got), strict=True):
        assert one.dtype == other.dtype == torch.int32
        assert torch.equal(one, other.cpu())


if __name__ == "__main__":
    for queries, keys in LENGTHS:
        for heads in (None, 1, 5):
            assert_same_tables(queries, keys, heads=heads, device="cpu")
    print("done")
