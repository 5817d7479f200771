"""A shuffle of any size is one, each key is another, and no place is liked better than the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epilogue.data.permutation import draw, permute

keys = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**6))


@settings(max_examples=80)
@given(st.integers(1, 3000), keys)
def test_it_is_a_bijection(size: int, key: tuple[int, ...]) -> None:
    assert sorted(permute(np.arange(size), size, key=key)) == list(range(size))


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 100_003])
def test_it_is_a_bijection_where_bits_run_over(size: int) -> None:
    assert len(set(permute(np.arange(size), size, key=(1,)).tolist())) == size


@settings(max_examples=40)
@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**12), min_size=1, max_size=9), keys)
def test_an_index_goes_where_it_goes_alone(size: int, indices: list[int], key: tuple[int, ...]) -> None:
    those = np.array(indices) % size
    together = permute(those, size, key=key)
    assert together.tolist() == [int(permute(those[i : i + 1], size, key=key)[0]) for i in range(len(those))]
    assert ((together >= 0) & (together < size)).all()


def test_keys_are_orders() -> None:
    orders = {tuple(permute(np.arange(50), 50, key=key)) for key in [(0, 0), (0, 1), (1, 0), (10,), (1, 0, 0)]}
    assert len(orders) == 5


@pytest.mark.parametrize("size", [3, 7, 10])
def test_every_index_goes_everywhere_about_as_often(size: int) -> None:
    counts = np.zeros((size, size))
    for epoch in range(1000):
        counts[np.arange(size), permute(np.arange(size), size, key=(5, epoch))] += 1
    wanted = 1000 / size
    assert (abs(counts - wanted) < 5 * np.sqrt(wanted)).all()


def test_neighbours_do_not_stay_together() -> None:
    order = permute(np.arange(10_000), 10_000, key=(3,))
    assert (abs(np.diff(order)) == 1).sum() < 20
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05


def test_draws_are_in_range_and_even() -> None:
    drawn = np.stack([draw(np.arange(300), np.full(300, 3), key=(epoch,)) for epoch in range(20)])
    assert set(drawn.flat) == {0, 1, 2}
    assert min(np.bincount(drawn.flat)) > 1800
    assert (draw(np.arange(9), np.ones(9, np.int64), key=(0,)) == 0).all()
