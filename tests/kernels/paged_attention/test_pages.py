"""What is written into pages is what is read from them, wherever a page ends."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.kernels.paged_attention import (
    PAGE_TOKENS,
    Storage,
    dequantize,
    gather_pages,
    quantize,
    row_norms,
    write_pages,
)
from kernels.paged_attention.books import STORAGES, empty_pages

each_storage = pytest.mark.parametrize("storage", STORAGES)


@each_storage
@given(data=st.data())
def test_tokens_come_back_from_any_offset(storage: Storage, data: Any) -> None:
    start = data.draw(st.integers(0, 2 * PAGE_TOKENS))
    num_tokens = data.draw(st.integers(0, 300) | st.sampled_from([PAGE_TOKENS - start % PAGE_TOKENS, PAGE_TOKENS]))
    heads, head_dim = 2, 6
    columns = max(1, -(-(start + num_tokens) // PAGE_TOKENS))
    pages = empty_pages(2 * columns + 1, head_dim, storage)
    ids = torch.randperm(2 * columns + 1)[: 2 * columns].view(heads, columns)
    x = torch.randn(heads, num_tokens, head_dim)
    write_pages(pages, x, ids, start)
    back = gather_pages(pages, ids)
    assert back.shape == (heads, columns * PAGE_TOKENS, head_dim)
    torch.testing.assert_close(back[:, start : start + num_tokens], dequantize(quantize(x, storage)).float())
    if storage != "int4" or num_tokens == 0:
        assert back[:, :start].isnan().all()
        assert back[:, start + num_tokens :].isnan().all()
    torch.testing.assert_close(gather_pages(pages, ids[1]), back[1], equal_nan=True)


@each_storage
def test_token_by_token_is_the_same_as_all_at_once(storage: Storage) -> None:
    x, ids = torch.randn(300, 8), torch.tensor([2, 0, 1])
    one, many = empty_pages(3, 8, storage), empty_pages(3, 8, storage)
    write_pages(many, x, ids, 17)
    for token, row in enumerate(x):
        first, offset = divmod(17 + token, PAGE_TOKENS)
        write_pages(one, row[None], ids[first : first + 1], offset)
    for a, b in zip(vars(one).values(), vars(many).values(), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_sequences_of_one_call_may_start_at_offsets_of_their_own() -> None:
    pages, x = empty_pages(4, 8, "float32"), torch.randn(2, 3, 8)
    write_pages(pages, x, torch.tensor([[0, 1], [3, 2]]), torch.tensor([126, 5]))
    torch.testing.assert_close(pages.data_PWD[0, 126:], x[0, :2])
    torch.testing.assert_close(pages.data_PWD[1, 0], x[0, 2])
    torch.testing.assert_close(pages.data_PWD[3, 5:8], x[1])
    assert pages.data_PWD.isfinite().sum() == x.numel()


def test_bf16_pages_can_be_gathered_as_they_are() -> None:
    pages, x = empty_pages(1, 8, "bfloat16"), torch.randn(PAGE_TOKENS, 8)
    write_pages(pages, x, torch.tensor([0]), 0)
    assert torch.equal(gather_pages(pages, torch.tensor([0]), dtype=torch.bfloat16), x.bfloat16())


def test_many_pages_are_gathered_in_order() -> None:
    pages, ids = empty_pages(150, 4, "int8"), torch.randperm(150)
    x = torch.randn(150 * PAGE_TOKENS, 4)
    write_pages(pages, x, ids, 0)
    torch.testing.assert_close(gather_pages(pages, ids), dequantize(quantize(x, "int8")))


@each_storage
@given(seed=st.integers(0, 2**31), num_tokens=st.integers(1, 3 * PAGE_TOKENS), size=st.sampled_from([1e-25, 1, 1e15]))
def test_norms_bound_the_keys_that_were_written(storage: Storage, seed: int, num_tokens: int, size: float) -> None:
    pages, ids = empty_pages(7, 10, storage), torch.tensor([[4, 0, 2], [1, 6, 3]])
    x = torch.randn(2, num_tokens, 10, generator=torch.Generator().manual_seed(seed)) * size
    write_pages(pages, x, ids, 0)
    norms = row_norms(gather_pages(pages, ids)[:, :num_tokens])
    assert norms.dtype == torch.float32
    exact = gather_pages(pages, ids, dtype=torch.float64)[:, :num_tokens].norm(dim=-1)
    assert (norms.double() >= exact).all()
    assert (norms.double() <= exact * (1 + 3e-6) + 1e-37).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 8), torch.zeros(1, 1, dtype=torch.int64), 0), "wanted x"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 1, dtype=torch.int64), 0), "wanted x"),
        ((torch.zeros(2, 3, 8), torch.zeros(2, 1, dtype=torch.int64), 126), "1 pages do not cover 3 tokens"),
        ((torch.zeros(3, 8), torch.zeros(1, dtype=torch.int64), -1), "do not cover"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_pages(empty_pages(2, 8, "float32"), *arguments)


@pytest.mark.parametrize("page", [-1, 2])
def test_a_page_outside_the_pool_is_never_written(page: int) -> None:
    pages = empty_pages(2, 8, "float32")
    with pytest.raises(IndexError):
        write_pages(pages, torch.zeros(1, 8), torch.tensor([page]), 0)
    assert pages.data_PWD.isnan().all()
