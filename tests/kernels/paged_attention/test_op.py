"""What the operation means, on every backend that runs here, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage, write_pages
from kernels.paged_attention.books import (
    STORAGES,
    assert_as_exact_as_pytorch,
    dense_attention,
    far_book,
    random_book,
    with_holes,
)

LENGTHS = [1, 63, 128, 129, 1000]
each_storage = pytest.mark.parametrize("storage", STORAGES)
each_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])


@each_storage
@pytest.mark.parametrize(("heads", "kv_heads", "num_queries"), [(3, 3, 1), (4, 2, 3), (3, 1, 16)])
def test_the_reference_is_attention(storage: Storage, heads: int, kv_heads: int, num_queries: int) -> None:
    book = random_book(
        [129, num_queries, 300], num_queries=num_queries, heads=heads, kv_heads=kv_heads, storage=storage
    )
    for case in (book, with_holes(book)):
        torch.testing.assert_close(case.wide().attend("reference"), dense_attention(case), rtol=1e-10, atol=1e-12)


@each_storage
@pytest.mark.parametrize("num_queries", [1, 3, 16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (8, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_lengths_and_heads(
    storage: Storage, num_queries: int, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    lengths = [length for length in LENGTHS if length >= num_queries]
    book = random_book(lengths, num_queries=num_queries, heads=heads, kv_heads=kv_heads, storage=storage, dtype=dtype)
    assert_as_exact_as_pytorch(book, "cpu")
    assert_as_exact_as_pytorch(with_holes(book), "cpu")


@each_storage
@pytest.mark.parametrize("head_dim", [7, 64, 96, 128])
def test_cpu_widths(storage: Storage, head_dim: int) -> None:
    if storage == "int4" and head_dim % 2:
        pytest.skip("int4 has two codes a byte")
    assert_as_exact_as_pytorch(random_book([1000, 129], num_queries=3, head_dim=head_dim, storage=storage), "cpu")


@pytest.mark.parametrize(("keys", "values"), [("int8", "int4"), ("int4", "float32"), ("bfloat16", "int8")])
def test_keys_and_values_may_differ_in_storage(keys: Storage, values: Storage) -> None:
    book = random_book([300, 64], storage=keys, value_storage=values)
    torch.testing.assert_close(book.wide().attend("reference"), dense_attention(book), rtol=1e-10, atol=1e-12)
    assert_as_exact_as_pytorch(book, "cpu")


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    num_queries=st.integers(1, 5),
    storage=st.sampled_from(STORAGES),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_any_table(
    lengths: list[int], kv_heads: int, group: int, num_queries: int, storage: Storage, seed: int
) -> None:
    """Even one that leaves a query nothing to see, or a sequence that is not yet as long as its queries."""
    torch.manual_seed(seed)
    heads = kv_heads * group
    book = random_book(lengths, num_queries=num_queries, heads=heads, kv_heads=kv_heads, storage=storage)
    gone = torch.rand(book.page_table_BKP.shape) < 0.3
    first = torch.randint(book.page_table_BKP.shape[2] + 1, (len(lengths), heads), dtype=torch.int32)
    book = replace(book, page_table_BKP=book.page_table_BKP.masked_fill(gone, -1), first_page_BH=first)
    truth = book.wide().attend("reference")
    assert truth.isfinite().all()
    torch.testing.assert_close(book.attend("cpu").double(), truth, rtol=1e-4, atol=1e-5)


@each_backend
def test_a_query_that_sees_nothing_gives_zeros(backend: Any) -> None:
    book = random_book([300, 200])
    book.page_table_BKP[0, 1] = -1
    book.num_keys_B[1] = 0
    out = book.attend(backend)
    assert (out[0, :, 1] == 0).all()
    assert (out[1] == 0).all()
    assert (out[0, :, 0] != 0).all()


@each_storage
@each_backend
def test_unwritten_rows_never_leak(storage: Storage, backend: Any) -> None:
    """``random_book`` fills them with NaN; here they are huge numbers, and nothing may change."""
    book = random_book([130, 5], storage=storage)
    before = book.attend(backend)
    assert before.isfinite().all()
    for pool in (book.k, book.v):
        for sequence, length in enumerate([130, 5]):
            last = book.page_table_BKP[sequence, :, (length - 1) // PAGE_TOKENS : (length - 1) // PAGE_TOKENS + 1]
            offset = length % PAGE_TOKENS
            write_pages(pool, torch.full((3, PAGE_TOKENS - offset, 16), 1e30), last.long(), offset)
    assert torch.equal(book.attend(backend), before)


@each_backend
def test_a_nan_that_was_written_is_not_hidden(backend: Any) -> None:
    book = random_book([300], heads=2, storage="int8")
    write_pages(book.k, torch.full((1, 16), torch.nan), book.page_table_BKP[0, 1, :1].long(), 3)
    out = book.attend(backend)
    assert out[0, :, 1].isnan().all()
    assert out[0, :, 0].isfinite().all()


@each_storage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_70000_tokens_back_is_heard(storage: Storage, dtype: torch.dtype) -> None:
    book = far_book(storage, dtype=dtype)
    truth = book.wide().attend("reference")
    assert (truth[0, :, 0].mean(-1) > 1).all(), "the far key was meant to matter"
    torch.testing.assert_close(truth, dense_attention(book), rtol=1e-9, atol=1e-9)
    assert_as_exact_as_pytorch(book, "cpu")
    if dtype == torch.bfloat16:  # a mask in bf16 makes PyTorch's path a poor measure
        assert (book.attend("cpu") - truth).abs().max() <= torch.finfo(dtype).eps * truth.abs().max()


@each_backend
def test_pages_that_are_not_visited_are_not_read(backend: Any) -> None:
    book = random_book([500], heads=2)
    book.first_page_BH = torch.tensor([[2, 1]])
    out = book.attend(backend)
    book.page_table_BKP[0, 0, :2] = -1
    book.page_table_BKP[0, 1, :1] = -1
    assert torch.equal(book.attend(backend), out)


def call(**changes: Any) -> torch.Tensor:
    book = random_book([130, 5], heads=4, kv_heads=2, head_dim=8)
    return replace(book, **changes).attend()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_BTHD": torch.zeros(4, 4, 8)}, "wanted q"),
        ({"q_BTHD": torch.zeros(2, 17, 4, 8)}, "wanted q"),
        ({"q_BTHD": torch.zeros(2, 0, 4, 8)}, "wanted q"),
        ({"q_BTHD": torch.zeros(2, 1, 4, 16)}, "width 16"),
        ({"q_BTHD": torch.zeros(3, 1, 4, 8)}, "page table"),
        ({"q_BTHD": torch.zeros(2, 1, 3, 8)}, "page table"),
        ({"page_table_BKP": torch.zeros(2, 2, 3, dtype=torch.int64)}, "must be int32"),
        ({"num_keys_B": torch.zeros(3, dtype=torch.int64)}, "wanted int32 or int64"),
        ({"num_keys_B": torch.zeros(2)}, "wanted int32 or int64"),
        ({"first_page_BH": torch.zeros(2, 2, dtype=torch.int64)}, "wanted int32 or int64"),
        ({"slopes_H": torch.ones(3)}, "slopes must be fp32"),
        ({"slopes_H": torch.ones(4, device="meta")}, "one device"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)
