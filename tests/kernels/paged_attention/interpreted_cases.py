"""The split kernels under Triton's interpreter, which must be chosen before they are imported: run by test_split.py."""

import os

os.environ["TRITON_INTERPRET"] = "1"

from dataclasses import replace
from typing import Any

import torch

from epilogue.kernels.paged_attention import split
from kernels.paged_attention.books import (
    STORAGES,
    Book,
    assert_as_exact_as_pytorch,
    far_book,
    random_book,
    with_holes,
)

SHAPES: list[tuple[list[int], dict[str, Any]]] = [
    ([1, 63, 128], {"heads": 1}),
    ([129, 400], {"heads": 3, "num_queries": 3}),
    ([129, 16], {"heads": 3, "num_queries": 16, "head_dim": 64}),
    ([300], {"heads": 8, "kv_heads": 2, "head_dim": 128}),
    ([140], {"heads": 12, "kv_heads": 1, "num_queries": 7}),  # two blocks of rows
    ([200], {"heads": 3, "head_dim": 96}),
]


def unseen_book(num_queries: int) -> Book:
    """A head with nothing to visit, a sequence without keys, and one shorter than its queries."""
    book = random_book([300, 200, 2], num_queries=num_queries)
    book.page_table_BKP[0, 1] = -1
    book.num_keys_B[1] = 0
    return replace(book, first_page_BH=torch.tensor([[2**31 - 1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.int32))


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fresh memory holds NaN
    for storage in STORAGES:
        for lengths, shape in SHAPES:
            book = random_book(lengths, storage=storage, **shape)
            assert_as_exact_as_pytorch(with_holes(book), "split")
        assert_as_exact_as_pytorch(with_holes(random_book([300, 5], storage=storage, dtype=torch.bfloat16)), "split")
        if storage != "int4":
            assert_as_exact_as_pytorch(random_book([130], head_dim=7, storage=storage), "split")
        print(storage, flush=True)
    assert_as_exact_as_pytorch(random_book([300], storage="int8", value_storage="int4"), "split")
    assert_as_exact_as_pytorch(random_book([300], storage="int4", value_storage="float32"), "split")
    assert_as_exact_as_pytorch(random_book([300], storage="int8", value_storage="bfloat16"), "split")
    for num_queries in (1, 3):
        assert_as_exact_as_pytorch(unseen_book(num_queries), "split")
    far = far_book("int8")
    far.first_page_BH = torch.tensor([[0, 540]])  # the interpreter needs milliseconds a page
    far.page_table_BKP[0, 0, 3:500] = -1
    assert_as_exact_as_pytorch(far, "split")
    split._BLOCKS_PER_PROCESSOR = 40  # a split for every page
    assert_as_exact_as_pytorch(random_book([4500], heads=1, storage="int8"), "split")
    assert_as_exact_as_pytorch(random_book([2500], heads=1, storage="int4"), "split")
    print("done")


if __name__ == "__main__":
    main()
