"""Where sequences begin, read from any mask."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.hf.padding import document_starts

Shape = tuple[int, int]
"""Padding before a text, and the text's own length; the rest is padding behind it."""


@st.composite
def shapes_and_cut(draw: st.DrawFn) -> tuple[int, list[Shape], int]:
    width = draw(st.integers(1, 12))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        before = draw(st.integers(0, width))
        rows.append((before, draw(st.integers(0, width - before))))
    return width, rows, draw(st.integers(0, width - 1))


def mask_of(width: int, rows: list[Shape]) -> torch.Tensor:
    return torch.tensor([[int(before <= s < before + length) for s in range(width)] for before, length in rows])


@given(shapes_and_cut())
def test_every_text_begins_where_its_padding_ends(drawn: tuple[int, list[Shape], int]) -> None:
    width, rows, num_before = drawn
    mask_BS = mask_of(width, rows)
    start_BT = document_starts(mask_BS, num_new=width - num_before, num_before=num_before)
    if start_BT is None:
        assert bool(mask_BS.all())
        return
    assert start_BT.dtype == torch.int64
    for (before, length), start_T in zip(rows, start_BT.tolist(), strict=True):
        for position, start in enumerate(start_T, start=num_before):
            assert start <= position
            if before <= position < before + length:
                assert start == before


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_holes_are_refused_and_nothing_else(rows: list[list[bool]]) -> None:
    mask_BS = torch.tensor(rows)
    has_hole = any("01" in "".join(str(int(mark)) for mark in row).lstrip("0") for row in rows)
    if has_hole:
        with pytest.raises(ValueError, match="hides tokens between others"):
            document_starts(mask_BS, num_new=5, num_before=0)
    else:
        document_starts(mask_BS, num_new=5, num_before=0)


def test_no_mask_and_a_mask_of_ones_cost_nothing() -> None:
    assert document_starts(None, num_new=3, num_before=4) is None
    assert document_starts(torch.ones(2, 7), num_new=3, num_before=4) is None
