"""Chunks by kernels and by operators, on a GPU or in Triton's interpreter: run by test_chunk.py."""

import itertools

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS, PageTensors, Storage, chunk, write_pages
from kernels.paged_attention.books import empty_pages

STORAGES: list[Storage] = ["float32", "bfloat16", "int8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 16, 1), (3, 7, 300), (2, 128, 256), (2, 96, 129)]
"""Heads, their width, and tokens of each."""


def on(device: str, pages: PageTensors) -> PageTensors:
    return PageTensors(*(None if x is None else x.to(device) for x in vars(pages).values()))


def assert_same_numbers(some: Tensor, others: Tensor) -> None:
    """Bit for bit. Only the interpreter cuts a bf16 number off where a GPU rounds it."""
    assert some.dtype == others.dtype
    unit = 2.0**-7 if some.dtype == torch.bfloat16 and not some.is_cuda else 0.0
    torch.testing.assert_close(some, others.to(some.device), rtol=unit, atol=0, equal_nan=True)


def make_pools(storages: tuple[Storage, Storage], num_pages: int, head_dim: int) -> tuple[PageTensors, PageTensors]:
    """Full of numbers."""
    first, second = (empty_pages(num_pages, head_dim, storage) for storage in storages)
    for pages in (first, second):
        x = torch.randn(num_pages, PAGE_TOKENS, head_dim) * torch.logspace(-6, 3, PAGE_TOKENS)[:, None]
        write_pages(pages, x, torch.arange(num_pages)[:, None], 0)
    return first, second


def compare_reading(
    storages: tuple[Storage, Storage], dtype: torch.dtype, shape: tuple[int, int, int], device: str
) -> None:
    heads, head_dim, num_tokens = shape
    columns = -(-num_tokens // PAGE_TOKENS)
    pools = make_pools(storages, heads * columns + 1, head_dim)
    table = torch.randperm(heads * columns + 1)[: heads * columns].view(heads, columns)
    table = torch.cat([torch.full((heads, 2), -1), table], dim=1)
    ids = table[:, 1:]  # a slice of a table, whose first page was given back
    wanted = [chunk._read_by_operators(p, ids, num_tokens + PAGE_TOKENS, dtype) for p in pools]
    got = chunk._read_by_kernel(tuple(on(device, p) for p in pools), ids.to(device), num_tokens + PAGE_TOKENS, dtype)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == (num_tokens + PAGE_TOKENS, heads, head_dim)
        assert_same_numbers(a[PAGE_TOKENS:], b[PAGE_TOKENS:])
        assert a[:PAGE_TOKENS].isfinite().all()
        assert all(a[:, head].is_contiguous() for head in range(heads))


def compare_all(device: str) -> None:
    torch.manual_seed(0)
    for storage, dtype, shape in itertools.product(STORAGES, DTYPES, SHAPES):
        compare_reading((storage, storage), dtype, shape, device)
    compare_reading(("int8", "bfloat16"), torch.bfloat16, (2, 16, 130), device)


def main() -> None:
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    compare_all("cpu")
    print("done")


if __name__ == "__main__":
    main()
