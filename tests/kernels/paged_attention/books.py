"""Paged caches with random content, and attention over them written down a second time, densely."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.kernels.paged_attention import (
    PAGE_TOKENS,
    PageTensors,
    Storage,
    allocate_pages,
    gather_pages,
    paged_attention,
    write_pages,
)
from kernels.attention.exactness import assert_within_twice_the_error

STORAGES: list[Storage] = ["float32", "bfloat16", "int8", "int4"]


@dataclass
class Book:
    """Arguments of ``paged_attention``; pages are scattered over the pool and what nobody wrote is NaN."""

    q_BTHD: Tensor
    k: PageTensors
    v: PageTensors
    page_table_BKP: Tensor
    num_keys_B: Tensor
    slopes_H: Tensor
    first_page_BH: Tensor | None = None
    scale: float = 1.0

    def attend(self, backend: Any = None) -> Tensor:
        """The op's output."""
        return paged_attention(**vars(self), backend=backend)

    def wide(self) -> "Book":
        """With fp64 queries."""
        return replace(self, q_BTHD=self.q_BTHD.double())

    def to(self, device: str) -> "Book":
        """On another device."""

        def moved(x: Any) -> Any:
            if isinstance(x, PageTensors):
                return PageTensors(*(moved(part) for part in vars(x).values()))
            return x.to(device) if isinstance(x, Tensor) else x

        return Book(**{name: moved(x) for name, x in vars(self).items()})


def random_book(
    lengths: list[int],
    *,
    num_queries: int = 1,
    heads: int = 3,
    kv_heads: int | None = None,
    head_dim: int = 16,
    storage: Storage = "float32",
    value_storage: Storage | None = None,
    dtype: torch.dtype = torch.float32,
) -> Book:
    """Sequences of the given lengths; the table has a column more than the longest of them needs."""
    kv_heads = kv_heads or heads
    columns = max(-(-length // PAGE_TOKENS) for length in lengths) + 1
    table = torch.full((len(lengths), kv_heads, columns), -1, dtype=torch.int32)
    num_pages = sum(-(-length // PAGE_TOKENS) for length in lengths) * kv_heads + 2
    pools = [empty_pages(num_pages, head_dim, kind) for kind in (storage, value_storage or storage)]
    free = torch.randperm(num_pages)
    for row, length in zip(table, lengths, strict=True):
        used = -(-length // PAGE_TOKENS)
        taken, free = free[: used * kv_heads], free[used * kv_heads :]
        row[:, :used] = taken.view(kv_heads, used)
        for pool in pools:
            write_pages(pool, torch.randn(kv_heads, length, head_dim), row[:, :used].long(), 0)
    q = torch.randn(len(lengths), num_queries, heads, head_dim).to(dtype)
    return Book(q, *pools, table, torch.tensor(lengths), torch.logspace(-0.3, -5, heads), scale=head_dim**-0.5)


def empty_pages(num_pages: int, head_dim: int, storage: Storage) -> PageTensors:
    """Pages in which reading an unwritten row cannot go unnoticed."""
    pages = allocate_pages(num_pages, head_dim, storage)
    pages.data_PWD.fill_(torch.nan if pages.data_PWD.is_floating_point() else 77)
    for factor in (pages.scale_PW, pages.zero_PW):
        if factor is not None:
            factor.fill_(torch.nan)
    return pages


def dense_attention(book: Book) -> Tensor:
    """One query of one head at a time, in fp64, over a list of the keys it may see."""
    batch, num_queries, heads, _ = book.q_BTHD.shape
    out = torch.zeros(book.q_BTHD.shape, dtype=torch.float64)
    for b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in (batch, num_queries, heads))).tolist():
        own = int(book.num_keys_B[b]) - num_queries + t
        ids = book.page_table_BKP[b, h // (heads // book.page_table_BKP.shape[1])].tolist()
        first = 0 if book.first_page_BH is None else int(book.first_page_BH[b, h])
        seen = [j for j in range(own + 1) if ids[j // PAGE_TOKENS] >= 0 and j // PAGE_TOKENS >= first]
        if not seen:
            continue
        live = torch.tensor(ids).clamp(min=0)
        k, v = (gather_pages(pages, live, dtype=torch.float64)[seen] for pages in (book.k, book.v))
        bias = -book.slopes_H[h].double() * (own - torch.tensor(seen))
        scores = k @ book.q_BTHD[b, t, h].double() * book.scale + bias
        out[b, t, h] = scores.softmax(0) @ v
    return out


def pytorch_attention(book: Book) -> Tensor:
    """PyTorch's fused attention in the queries' dtype, over gathered pages and under a materialised mask."""
    group = book.q_BTHD.shape[2] // book.page_table_BKP.shape[1]
    ids_BHP = book.page_table_BKP.long().repeat_interleave(group, dim=1)
    num_queries, num_keys = book.q_BTHD.shape[1], ids_BHP.shape[2] * PAGE_TOKENS
    keys = torch.arange(num_keys, device=ids_BHP.device)
    own = book.num_keys_B[:, None] - num_queries + torch.arange(num_queries, device=keys.device)
    ahead_BTS = keys - own[..., None]
    mask_BHTS = (book.slopes_H[:, None, None] * ahead_BTS[:, None]).masked_fill(ahead_BTS[:, None] > 0, -torch.inf)
    hidden_BHP = ids_BHP < 0
    if book.first_page_BH is not None:
        hidden_BHP = hidden_BHP | (torch.arange(ids_BHP.shape[2], device=keys.device) < book.first_page_BH[..., None])
    mask_BHTS.masked_fill_(hidden_BHP.repeat_interleave(PAGE_TOKENS, dim=2)[:, :, None], -torch.inf)
    k, v = (gather_pages(pages, ids_BHP.clamp(min=0)).nan_to_num(0) for pages in (book.k, book.v))
    out_BHTD = F.scaled_dot_product_attention(
        book.q_BTHD.transpose(1, 2),
        *(x.to(book.q_BTHD.dtype) for x in (k, v, mask_BHTS)),
        scale=book.scale,
    )
    return out_BHTD.transpose(1, 2).nan_to_num(0)


def assert_as_exact_as_pytorch(book: Book, backend: str) -> None:
    """A backend obeys the rule of docs/numerics.md on this book."""
    truth = book.wide().attend("reference")
    assert_within_twice_the_error([book.attend(backend)], [pytorch_attention(book)], [truth])


def with_holes(book: Book) -> Book:
    """Evicts some pages and has some heads begin late, each at a page of its own."""
    table = book.page_table_BKP.clone()
    columns = table.shape[2]
    table[:, 0, : columns // 3] = -1
    table[:, -1, columns // 2] = -1
    first = torch.arange(book.q_BTHD.shape[0] * book.q_BTHD.shape[2]).view(len(table), -1) % max(columns - 1, 1)
    return replace(book, page_table_BKP=table, first_page_BH=first)


def far_book(storage: Storage, *, head_dim: int = 16, dtype: torch.dtype = torch.float32) -> Book:
    """A flat and a steep head 70,000 tokens from a key that the flat one must hear."""
    book = random_book([70_000], num_queries=2, heads=2, head_dim=head_dim, storage=storage, dtype=dtype)
    book.slopes_H = torch.tensor([2.0**-16, 0.5])
    book.q_BTHD[:] = book.q_BTHD[:, :1, :1]
    q = book.q_BTHD[0, 0, 0].float()
    key = q * (13 / book.scale / q.square().sum())
    first = book.page_table_BKP[0, 0, :1].long()
    write_pages(book.k, key[None], first, 0)
    write_pages(book.v, torch.full_like(key, 5.0)[None], first, 0)
    return book
