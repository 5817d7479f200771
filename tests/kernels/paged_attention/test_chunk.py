"""Reading and writing a chunk's pages by kernels gives, bit for bit, what PyTorch's operators give."""

import pytest
import torch

from epilogue.kernels.paged_attention import read_pages
from fresh_process import needs_triton, printed_by
from kernels.paged_attention.interpreted_chunks import compare_all, make_pools


@needs_triton
def test_kernels_read_and_write_what_operators_do() -> None:
    assert printed_by("kernels.paged_attention.interpreted_chunks", interpreted=True).endswith("done\n")


@pytest.mark.gpu
def test_on_an_accelerator_kernels_read_and_write_what_operators_do() -> None:
    compare_all("cuda")


def test_pages_of_all_heads_are_read_at_once() -> None:
    pools, ids = make_pools(("int8", "int8"), 4, 8), torch.tensor([[3, 1], [0, 2]])
    k_TKD, v_TKD = read_pages(pools, ids, num_tokens=200, dtype=torch.bfloat16)
    for x_TKD, pages in zip((k_TKD, v_TKD), pools, strict=True):
        assert pages.scale_PW is not None
        exact = pages.data_PWD.float() * pages.scale_PW[..., None]
        for head in range(2):
            assert torch.equal(x_TKD[:, head], exact[ids[head]].flatten(0, 1)[:200].bfloat16())
