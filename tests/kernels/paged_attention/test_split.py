"""The GPU kernels: interpreted and compiled anywhere, each in a process of its own, and run where there is a GPU."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from epilogue.kernels.paged_attention import Storage
from fresh_process import needs_triton, printed_by
from gpu_waits import no_waiting
from kernels.paged_attention.books import (
    STORAGES,
    assert_as_exact_as_pytorch,
    far_book,
    random_book,
    with_holes,
)

each_storage = pytest.mark.parametrize("storage", STORAGES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@needs_triton
def test_interpreted_kernels_are_as_exact_as_pytorch() -> None:
    assert printed_by("kernels.paged_attention.interpreted_cases").endswith("done\n")


@needs_triton
def test_kernels_compile_for_a_gpu() -> None:
    assert len(printed_by("kernels.paged_attention.compiled_cases", "90", "64", "16").splitlines()) == 2 * len(STORAGES)


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_other_gpus_and_shapes() -> None:
    printed_by("kernels.paged_attention.compiled_cases", "80,89,90", "16,128,256", "16,32")


def test_the_package_loads_without_triton() -> None:
    code = "import sys; import epilogue.kernels.paged_attention; assert 'triton' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@each_storage
@each_dtype
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "num_queries"),
    [(1, 1, 16, 1), (3, 3, 128, 3), (8, 2, 64, 16), (32, 1, 96, 16), (32, 32, 128, 1)],
)
def test_on_an_accelerator(
    storage: Storage, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, num_queries: int
) -> None:
    book = random_book(
        [16, 129, 1000, 5000],
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, num_queries=num_queries, storage=storage, dtype=dtype,
    )  # fmt: skip
    assert_as_exact_as_pytorch(book.to("cuda"), "split")
    assert_as_exact_as_pytorch(with_holes(book).to("cuda"), "split")


@pytest.mark.gpu
@each_storage
def test_on_an_accelerator_a_key_70000_tokens_back_is_heard(storage: Storage) -> None:
    assert_as_exact_as_pytorch(far_book(storage).to("cuda"), "split")


@pytest.mark.gpu
@each_storage
def test_one_captured_graph_serves_every_table(storage: Storage) -> None:
    book = with_holes(random_book([700, 300], heads=4, kv_heads=2, storage=storage, dtype=torch.bfloat16)).to("cuda")
    book.attend("split")  # compiles
    torch.cuda.synchronize()
    graph: Any = torch.cuda.CUDAGraph()
    with no_waiting(), torch.cuda.graph(graph):
        out = book.attend("split")
    book.num_keys_B.sub_(150)
    book.page_table_BKP[1, 0, 0] = -1
    assert book.first_page_BH is not None
    book.first_page_BH.fill_(0)
    graph.replay()
    torch.testing.assert_close(out, book.attend("split"), rtol=0, atol=0)
