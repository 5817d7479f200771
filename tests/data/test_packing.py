"""Every token but a book's first is predicted once an epoch, whatever the lengths, and rows are nearly full."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from epilogue.data.packing import Packing

lengths = st.lists(st.integers(0, 90), min_size=1, max_size=12)


@settings(max_examples=150)
@given(lengths, st.integers(1, 40), st.integers(0, 9))
def test_every_token_is_predicted_once(lengths: list[int], num_tokens: int, epoch: int) -> None:
    packing = Packing(np.array(lengths), num_tokens)
    predicted = []
    for number in range(packing.num_rows):
        row = packing.row(number, key=(epoch,))
        assert 0 < sum(piece.num_tokens for piece in row) <= num_tokens
        for piece in row:
            predicted += [(piece.document, piece.start + 1 + i) for i in range(piece.num_tokens)]
    assert sorted(predicted) == [(book, place) for book, n in enumerate(lengths) for place in range(1, n)]


@settings(max_examples=60)
@given(lengths, st.integers(1, 40))
def test_no_two_rows_could_be_one(lengths: list[int], num_tokens: int) -> None:
    packing = Packing(np.array(lengths), num_tokens)
    fill = [sum(p.num_tokens for p in packing.row(n, key=(0,))) for n in range(packing.num_rows)]
    assert sum(sorted(fill)[:2]) > num_tokens or len(fill) < 2


def test_the_tightest_row_is_taken() -> None:
    packing = Packing(np.array([7, 6, 4, 3]), 10)  # predicts 6, 5, 3 and 2 tokens
    assert [[p.document for p in packing.row(n, key=(0,))] for n in range(2)] == [[0, 2], [1, 3]]


def test_novels_lose_next_to_nothing() -> None:
    lengths = np.random.default_rng(0).integers(30_000, 800_000, 500)
    for num_tokens in (2048, 65_536):
        packing = Packing(lengths, num_tokens)
        assert (lengths - 1).sum() / (packing.num_rows * num_tokens) > 0.995


def test_epochs_cut_books_elsewhere() -> None:
    packing = Packing(np.array([96]), 10)
    cuts = {tuple(packing.row(n, key=(epoch,))[0].start for n in range(packing.num_rows)) for epoch in range(40)}
    assert len(cuts) == 10  # before the first of nine windows, behind each of them
