# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return,assignment"
"""The Triton kernel of ``row.py``. Not typed: its arguments are Python objects before it is compiled, and none after.

O counts outputs, L lanes of inputs, W a lane's four words of 32 bits, and I a lane's inputs: 32 of four bits, 16 of
eight. A lane's words are 16 bytes that one instruction reads, and all have one scale. Codes stay whole numbers, and
four of them at a time are multiplied (dp4a) with the inputs, which are in steps of their lane, 16 bits as two digits of
8. Compiled only; the interpreter takes the same steps byte by byte.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _dot_of_bytes(codes, digits, total, IS_SIGNED: tl.constexpr, IS_COMPILED: tl.constexpr):
    """total plus the products of four codes with four digits; it is the digits that are signed or not."""
    if IS_COMPILED:
        if IS_SIGNED:
            return tl.inline_asm_elementwise(
                "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, digits, total], tl.int32, is_pure=True, pack=1
            )
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [codes, digits, total], tl.int32, is_pure=True, pack=1
        )
    for byte in tl.static_range(4):
        digit = (digits << (24 - 8 * byte)) >> 24
        total += ((codes >> (8 * byte)) & 255) * (digit if IS_SIGNED else digit & 255)
    return total


@triton.jit
def _digits(steps_LW22):
    """The low and the high digits of four numbers of 16 bits each, as words: low ones 0 to 255, high ones signed."""
    first_LW2, second_LW2 = tl.split(steps_LW22)
    a, c = tl.split(first_LW2)
    b, d = tl.split(second_LW2)
    even, odd = (a & 0xFFFF) | (c << 16), (b & 0xFFFF) | (d << 16)
    low = (even & 0x00FF00FF) | ((odd << 8) & -0x00FF0100)
    high = ((even >> 8) & 0x00FF00FF) | (odd & -0x00FF0100)
    return low, high


@triton.jit
def _products(codes, digits, total, BITS: tl.constexpr, IS_SIGNED: tl.constexpr, IS_COMPILED: tl.constexpr):
    """total plus what a word of codes gives with digits: those of its bytes, or of their low and their high halves."""
    if BITS == 8:
        return _dot_of_bytes(codes, digits[0], total, IS_SIGNED, IS_COMPILED)
    else:
        total = _dot_of_bytes(codes & 0x0F0F0F0F, digits[0], total, IS_SIGNED, IS_COMPILED)
        return _dot_of_bytes((codes >> 4) & 0x0F0F0F0F, digits[1], total, IS_SIGNED, IS_COMPILED)


@triton.jit
def _dot(codes_LOW, low, high, BITS: tl.constexpr, IS_COMPILED: tl.constexpr):
    """What each lane's codes give with its inputs, in its steps: exact."""
    total_LOW = _products(codes_LOW, high, tl.zeros_like(codes_LOW), BITS, True, IS_COMPILED) << 8
    return tl.sum(_products(codes_LOW, low, total_LOW, BITS, False, IS_COMPILED), 2)


@triton.jit
def _row_as_words(
    x_ptr, order_ptr,
    INPUTS: tl.constexpr, BITS: tl.constexpr, HAS_ORDER: tl.constexpr, BLOCK_L: tl.constexpr,
    IS_COMPILED: tl.constexpr,
):  # fmt: skip
    """A row in steps of its lanes: their sizes, the sums of their numbers, and the words of low and of high digits.

    A step is a power of two, 2^-15 to 2^-14 of the lane's largest input, so that most of bf16's numbers are whole. NaN
    and infinity make it NaN.
    """
    num_inputs: tl.constexpr = 128 // BITS
    inputs = tl.arange(0, BLOCK_L * num_inputs)
    is_input = inputs < INPUTS
    if HAS_ORDER:
        inputs = tl.load(order_ptr + inputs, mask=is_input, other=0)
    x_LI = tl.load(x_ptr + inputs, mask=is_input, other=0.0).to(tl.float32).reshape([BLOCK_L, num_inputs])
    # As whole numbers NaN is the largest of all.
    exponent_L = tl.maximum(tl.max(x_LI.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1) >> 23, 15)
    step_L = ((exponent_L - 14) << 23).to(tl.float32, bitcast=True)
    steps_a_one_L = ((268 - exponent_L) << 23).to(tl.float32, bitcast=True)
    # Behind 1.5 * 2^23 a float's last bits are a whole number, rounded to nearest.
    steps_LI = (x_LI * steps_a_one_L[:, None] + 12582912.0).to(tl.int32, bitcast=True)
    if BITS == 8:
        low_LW, high_LW = _digits(steps_LI.reshape([BLOCK_L, 4, 2, 2]))
        low, high = (low_LW[:, None, :],), (high_LW[:, None, :],)
    else:
        even, odd = tl.split(steps_LI.reshape([BLOCK_L, 4, 2, 2, 2]))
        even_low_LW, even_high_LW = _digits(even)
        odd_low_LW, odd_high_LW = _digits(odd)
        low = (even_low_LW[:, None, :], odd_low_LW[:, None, :])
        high = (even_high_LW[:, None, :], odd_high_LW[:, None, :])
    ones: tl.constexpr = 0x01010101 if BITS == 8 else 0x11111111
    sum_L1 = _dot(tl.full([BLOCK_L, 1, 4], ones, tl.int32), low, high, BITS, IS_COMPILED)
    return tl.where(exponent_L == 255, float("nan"), step_L)[:, None], sum_L1, low, high


@triton.jit
def _tile(
    codes_ptr, scale_ptr, zero_ptr, first_output, outputs,
    INPUTS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Codes of BLOCK_O outputs, and their lanes' scales and zero points, as they are stored."""
    num_inputs: tl.constexpr = 128 // BITS
    num_words: tl.constexpr = INPUTS * BITS // 32
    num_groups: tl.constexpr = (INPUTS + GROUP - 1) // GROUP
    outputs_O, lanes_L, words_W = tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_L), tl.arange(0, 4)
    is_output_1O = (first_output + outputs_O < outputs)[None, :]
    is_lane_LO, is_word_LOW = is_output_1O, is_output_1O[:, :, None]
    if BLOCK_L * num_inputs != INPUTS:
        is_lane_LO &= (lanes_L * num_inputs < INPUTS)[:, None]
        is_word_LOW = is_lane_LO[:, :, None]
    if INPUTS % num_inputs != 0:  # the last lane has fewer words; such a mask tears wide reads apart
        is_word_LOW &= (lanes_L[:, None] * 4 + words_W[None, :] < num_words)[:, None, :]
    first = first_output.to(tl.int64)
    words_ptr = codes_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + first * num_words
    at_LOW = (outputs_O * num_words)[None, :, None] + (lanes_L[:, None] * 4 + words_W[None, :])[:, None, :]
    at_LO = first * num_groups + (outputs_O * num_groups)[None, :] + (lanes_L * num_inputs // GROUP)[:, None]
    codes_LOW = tl.load(words_ptr + at_LOW, mask=is_word_LOW, other=0)
    scale_LO = tl.load(scale_ptr + at_LO, mask=is_lane_LO, other=0.0)
    return codes_LOW, scale_LO, tl.load(zero_ptr + at_LO, mask=is_lane_LO, other=0)


@triton.jit
def _multiply(
    tile, rows, onto_ptr, out_ptr, first_output, stop, outputs,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_O: tl.constexpr,
    CLIP: tl.constexpr, HAS_ONTO: tl.constexpr, IS_COMPILED: tl.constexpr,
):  # fmt: skip
    """A tile with every row."""
    codes_LOW, scale_LO, zero_LO = tile
    outputs_O = first_output + tl.arange(0, BLOCK_O)
    for r in tl.static_range(ROWS):
        step_L1, sum_L1, low, high = rows[r]
        steps_LO = _dot(codes_LOW, low, high, BITS, IS_COMPILED) - zero_LO.to(tl.int32) * sum_L1
        out_O = tl.sum(steps_LO.to(tl.float32) * scale_LO.to(tl.float32) * step_L1, 0)
        if CLIP is not None:
            out_O = tl.clamp(out_O, -CLIP, CLIP, propagate_nan=tl.PropagateNan.ALL)
        if HAS_ONTO:
            out_O += tl.load(onto_ptr + r * outputs + outputs_O, mask=outputs_O < stop, other=0.0).to(tl.float32)
        tl.store(out_ptr + r * outputs + outputs_O, out_O.to(out_ptr.dtype.element_ty), mask=outputs_O < stop)


@triton.jit
def row_kernel(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, order_ptr, onto_ptr, out_ptr, outputs,
    INPUTS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, HAS_ORDER: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_L: tl.constexpr, TILES: tl.constexpr, CLIP: tl.constexpr,
    HAS_ONTO: tl.constexpr, IS_EARLY: tl.constexpr, IS_COMPILED: tl.constexpr,
):  # fmt: skip
    """One program: TILES tiles of BLOCK_O outputs of every row."""
    first = tl.program_id(0) * (BLOCK_O * TILES)
    stop = tl.minimum(outputs, first + BLOCK_O * TILES)
    tile = _tile(codes_ptr, scale_ptr, zero_ptr, first, stop, INPUTS, GROUP, BITS, BLOCK_O, BLOCK_L)
    # Memory is to be busy before the inputs are there, and the assembler would have it otherwise.
    if IS_EARLY:
        gdc_launch_dependents()
        gdc_wait()
    elif IS_COMPILED:
        tl.debug_barrier()
    rows = ()
    for r in tl.static_range(ROWS):
        rows += (_row_as_words(x_ptr + r * INPUTS, order_ptr, INPUTS, BITS, HAS_ORDER, BLOCK_L, IS_COMPILED),)
    for i in range(TILES):
        start = first + i * BLOCK_O
        next_tile = _tile(codes_ptr, scale_ptr, zero_ptr, start + BLOCK_O, stop, INPUTS, GROUP, BITS, BLOCK_O, BLOCK_L)
        _multiply(
            tile, rows, onto_ptr, out_ptr, start, stop, outputs, BITS, ROWS, BLOCK_O, CLIP, HAS_ONTO,
            IS_COMPILED,
        )  # fmt: skip
        tile = next_tile
