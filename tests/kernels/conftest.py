"""What holds for every kernel test."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fresh memory, also that which PyTorch's own operators take, holds NaN: an unwritten cell cannot pass."""
    if request.node.get_closest_marker("gpu"):  # asks for deterministic algorithms, which cuBLAS refuses
        yield
        return
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
