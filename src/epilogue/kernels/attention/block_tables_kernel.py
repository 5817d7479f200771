# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call,no-any-return"
"""The Triton kernel of ``block_tables.py``. Not typed: its arguments are Python objects before it is compiled."""

import triton
import triton.language as tl


# A text's length is another with every chunk, and not worth a kernel of its own.
@triton.jit(do_not_specialize=["num_queries", "num_keys", "first_stride", "num_columns"])
def block_tables_kernel(
    first_ptr, first_stride, num_masked_ptr, masked_ptr, num_full_ptr, full_ptr, num_queries, num_keys, num_columns,
    HAS_FIRST: tl.constexpr, BLOCK_TOKENS: tl.constexpr, TILE_TOKENS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One row of one head's tables: all blocks from the plan's first one to the diagonal, and those on it."""
    row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first_block = 0
    if HAS_FIRST:
        first_key = tl.load(first_ptr + head * first_stride + row * BLOCK_TOKENS // TILE_TOKENS)
        first_block = (first_key // BLOCK_TOKENS).to(tl.int32)
    first = num_keys - num_queries + row * BLOCK_TOKENS
    last = tl.minimum(first + BLOCK_TOKENS - 1, num_keys - 1)
    past_full = (first + 1) // BLOCK_TOKENS
    at = head * tl.num_programs(0) + row
    tl.store(num_masked_ptr + at, last // BLOCK_TOKENS + 1 - past_full)
    tl.store(num_full_ptr + at, past_full - tl.minimum(first_block, past_full))
    # Columns in turns: a kernel for each power of two would be compiled in the middle of a book.
    for start in range(0, num_columns, BLOCK_S):
        column_S = start + tl.arange(0, BLOCK_S)
        is_column_S = column_S < num_columns
        masked_S, full_S = past_full + column_S, first_block + column_S
        at_S = at * num_columns + column_S
        tl.store(masked_ptr + at_S, tl.minimum(masked_S, num_columns - 1), mask=is_column_S)
        tl.store(full_ptr + at_S, tl.minimum(full_S, num_columns - 1), mask=is_column_S)
