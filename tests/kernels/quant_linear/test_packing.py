"""Bit layouts: words and bytes as the tables say, and there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epilogue.kernels.quant_linear import dense, pack_codes, pack_words, round_to_codes, unpack_codes, unpack_words
from kernels.quant_linear.weights import one_by_one, random_weight

each_width = pytest.mark.parametrize("bits", [4, 8])


def test_the_lowest_bits_come_first() -> None:
    nibbles = torch.tensor([[1], [2], [3], [4], [5], [6], [7], [15]], dtype=torch.uint8)
    assert pack_words(nibbles, 4, dim=0).tolist() == [[0xF7654321 - 2**32]]
    octets = torch.tensor([[1, 2, 3, 128]], dtype=torch.uint8)
    assert pack_words(octets, 8, dim=1).tolist() == [[0x80030201 - 2**32]]
    assert pack_codes(nibbles.T, 4).tolist() == [[0x21, 0x43, 0x65, 0xF7]]


def test_symmetric_zero_points_less_one_are_all_sevens() -> None:
    assert pack_words(torch.full((3, 16), 7, dtype=torch.uint8), 4, dim=1).unique().tolist() == [0x77777777]


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1), st.integers(0, 2**31))
def test_words_and_bytes_come_back(bits: int, words: int, others: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    shape = [others, others]
    shape[dim] = words * 32 // bits
    values = torch.randint(2**bits, shape, dtype=torch.uint8)
    packed = pack_words(values, bits, dim=dim)
    assert (packed.dtype, packed.shape[dim]) == (torch.int32, words)
    assert torch.equal(unpack_words(packed, bits, dim=dim), values)
    codes = values if dim else values.T
    stored = pack_codes(codes, bits)
    assert stored.is_contiguous()  # else every product would copy it first
    assert torch.equal(unpack_codes(stored, bits), codes)


def test_what_cannot_be_packed_is_a_wrong_call() -> None:
    codes = torch.zeros(3, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="even number of inputs, got 3"):
        pack_codes(codes, 4)
    with pytest.raises(ValueError, match="do not fill words of 4"):
        pack_words(codes, 8, dim=0)
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        pack_codes(codes, 3)


@each_width
@pytest.mark.parametrize("has_order", [False, True])
@pytest.mark.parametrize(("inputs", "group_size"), [(64, 32), (48, 32), (40, 128), (64, 64), (6, 1)])
@pytest.mark.parametrize("scales", [torch.float16, torch.bfloat16, torch.float32])
def test_dense_is_scale_times_code_less_zero_point(
    bits: int, inputs: int, group_size: int, scales: torch.dtype, *, has_order: bool
) -> None:
    weight = random_weight(7, inputs, bits=bits, group_size=group_size, has_order=has_order, scale_dtype=scales)
    expected = one_by_one(weight)
    assert torch.equal(dense(weight, dtype=torch.float64), expected)
    assert torch.equal(dense(weight), expected.float())
    assert torch.equal(dense(weight, dtype=torch.bfloat16), expected.float().bfloat16())


@given(
    rows=st.integers(1, 5), groups=st.integers(1, 4), group_size=st.sampled_from([1, 2, 32]), seed=st.integers(0, 99)
)
def test_the_nearest_codes_are_half_a_step_off_at_most(rows: int, groups: int, group_size: int, seed: int) -> None:
    weight_OI = torch.randn(rows, groups * group_size, generator=torch.Generator().manual_seed(seed))
    weight_OI[0, 0] = 0
    coded = round_to_codes(weight_OI, group_size=group_size)
    off_OGI = (dense(coded) - weight_OI).unflatten(1, (groups, group_size)).abs()
    assert (off_OGI <= coded.scales_OG[..., None] * 0.5001).all()
    with pytest.raises(ValueError, match="do not divide"):
        round_to_codes(weight_OI, group_size=groups * group_size + 1)
