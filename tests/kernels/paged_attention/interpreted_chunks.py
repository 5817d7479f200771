"""Chunks by kernels and by operators, on a GPU or in Triton's interpreter: run by test_chunk.py."""

import itertools

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import PAGE_TOKENS, PageTensors, Storage, chunk, largest_of_pages, write_pages
from kernels.paged_attention.books import empty_pages

STORAGES: list[Storage] = ["float32", "bfloat16", "int8"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 16, 1), (3, 7, 300), (2, 128, 129)]
"""Heads, their width, and tokens of each."""


def on(device: str, pages: PageTensors) -> PageTensors:
    return PageTensors(*(None if x is None else x.to(device) for x in vars(pages).values()))


def assert_same_numbers(some: Tensor, others: Tensor, *, unit: float = 0.0) -> None:
    """Bit for bit, or to within a unit. NaN is alike."""
    assert some.dtype == others.dtype
    torch.testing.assert_close(some, others.to(some.device), rtol=unit, atol=0, equal_nan=True)


def bf16_unit(of: torch.dtype, to: torch.dtype, device: str) -> float:
    """Only the interpreter cuts a bf16 number off where a GPU rounds it."""
    return 2.0**-7 if to == torch.bfloat16 != of and device == "cpu" else 0.0


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
        assert_same_numbers(a[PAGE_TOKENS:], b[PAGE_TOKENS:], unit=bf16_unit(torch.float32, dtype, device))
        assert a[:PAGE_TOKENS].isfinite().all()
        assert all(a[:, head].is_contiguous() for head in range(heads))
    first_page_K = torch.arange(heads) % (columns + 1)
    seen_TK = torch.arange(num_tokens + PAGE_TOKENS)[:, None] >= first_page_K * PAGE_TOKENS
    there = tuple(on(device, p) for p in pools)
    args = (there, ids.to(device), num_tokens + PAGE_TOKENS, dtype, first_page_K.to(device))
    for a, b in zip(chunk._read_by_kernel(*args), got, strict=True):
        assert torch.equal(a[seen_TK], b[seen_TK])
        if torch.are_deterministic_algorithms_enabled():
            assert a[~seen_TK].isnan().all(), "what nobody looks at is left"


def compare_writing(
    storages: tuple[Storage, Storage], dtype: torch.dtype, shape: tuple[int, int, int], start: int, device: str
) -> None:
    heads, head_dim, num_tokens = shape
    columns = -(-(start + num_tokens) // PAGE_TOKENS)
    ids = torch.randperm(heads * columns + 1)[: heads * columns].view(heads, columns)
    x = torch.randn(num_tokens, 3, heads, head_dim) * torch.logspace(-4, 2, num_tokens)[:, None, None, None]
    x[-1, 0, 0, 0], x[-1, 1, -1, -1] = torch.nan, torch.inf
    x[0, 0] = 0
    k_TKD, v_TKD = x.to(dtype)[:, 0], x.to(dtype)[:, 1]  # parts of one projection
    wanted, got = ([empty_pages(heads * columns + 1, head_dim, s) for s in storages] for _ in range(2))
    their_k, their_norms = chunk._write_by_operators((wanted[0], wanted[1]), k_TKD, v_TKD, ids, start)
    got = [on(device, pages) for pages in got]
    moved = x.to(device, dtype)
    k, norms = chunk._write_by_kernel((got[0], got[1]), moved[:, 0], moved[:, 1], ids.to(device), start)
    unit = bf16_unit(dtype, wanted[0].data_PWD.dtype, device)
    assert_same_numbers(k, their_k, unit=unit)
    assert_same_numbers(norms, their_norms, unit=max(unit, 2.0**-23))  # sums of fp64 in another order
    assert (~(norms.double() < largest_of_pages(k.double().norm(dim=-1), start))).all()
    for ours, theirs in zip(got, wanted, strict=True):
        for one, other in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            if one is not None:
                assert_same_numbers(one, other, unit=bf16_unit(dtype, one.dtype, device))


def compare_all(device: str) -> None:
    torch.manual_seed(0)
    for storage, dtype, shape in itertools.product(STORAGES, DTYPES, SHAPES):
        compare_reading((storage, storage), dtype, shape, device)
        compare_writing((storage, storage), dtype, shape, shape[2] % 5 * 31, device)
    compare_reading(("int8", "bfloat16"), torch.bfloat16, (2, 16, 130), device)
    compare_writing(("int8", "bfloat16"), torch.bfloat16, (2, 16, 130), 127, device)


def main() -> None:
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    compare_all("cpu")
    print("done")


if __name__ == "__main__":
    main()
