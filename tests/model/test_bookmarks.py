"""Bookmarks: none is made too late, one is never far, and the pages they hold are bounded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import SPACINGS, bookmarks, check_spacings
from epilogue.model.bookmarks import most_pages_for_bookmarks

LENGTHS = st.integers(0, 200_000)
spacings_of_pages = st.sampled_from([(), (128,), (128, 256), (256, 1024), SPACINGS])


@given(LENGTHS, st.integers(0, 3000), spacings_of_pages)
def test_only_new_ones_come(length: int, growth: int, spacings: tuple[int, ...]) -> None:
    """A bookmark of a longer text that lies in the shorter one was one of its bookmarks."""
    before, after = bookmarks(length, spacings), bookmarks(length + growth, spacings)
    assert all(position in before for position in after if position <= length)
    assert after == sorted(set(after))
    assert all(0 < position <= length + growth and position % PAGE_TOKENS == 0 for position in after)


@given(st.integers(1, 200_000), st.data())
def test_an_edit_finds_one_within_four_times_its_distance(length: int, data: st.DataObject) -> None:
    distance = data.draw(st.integers(1, SPACINGS[-1]))
    found = max([position for position in bookmarks(length, SPACINGS) if position <= length - distance] or [0])
    assert length - found <= max(4 * distance, 2 * SPACINGS[0])


@given(st.integers(1, 100_000), st.sampled_from([1, 3, 17, 100, 10_000]), spacings_of_pages)
def test_no_text_on_the_way_holds_more(length: int, window: int, spacings: tuple[int, ...]) -> None:
    most = int(most_pages_for_bookmarks(torch.tensor([[float(window)]]), length, spacings))
    for so_far in {length, length // 2, length // 3 + 1, length - length % 8192}:
        held: set[int] = set()
        for position in bookmarks(so_far, spacings):
            held |= set(range(max(0, position // PAGE_TOKENS - window), position // PAGE_TOKENS))
        assert len(held) <= most


def test_a_window_without_an_end() -> None:
    most_LH = most_pages_for_bookmarks(torch.tensor([[float("inf"), 2.0]]), 100_000, (1024,))
    assert most_LH.tolist() == [[781.0 + 8, 4.0]]


@pytest.mark.parametrize("spacings", [(0,), (100,), (-128,), (256, 128), (256, 384)])
def test_spacings_that_are_none(spacings: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bookmarks must be spaced"):
        check_spacings(spacings)
