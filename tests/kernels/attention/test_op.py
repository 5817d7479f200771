"""What the operation refuses, and what it promises whichever backend runs."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from epilogue.kernels.attention import attention
from kernels.attention.exactness import random_inputs


def call(backend: Any = None, **changes: Any) -> torch.Tensor:
    q, k, v = random_inputs(4, 6, heads=4, kv_heads=2, head_dim=8)
    arguments = {"q_BTHD": q, "k_BSKD": k, "v_BSKD": v, "slopes_H": torch.ones(4)} | changes
    return attention(**arguments, scale=1.0, backend=backend)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_BTHD": torch.zeros(4, 4, 8)}, "wanted q"),
        ({"k_BSKD": torch.zeros(6, 2, 8)}, "wanted q"),
        ({"v_BSKD": torch.zeros(1, 5, 2, 8)}, "wanted q"),
        ({"q_BTHD": torch.zeros(2, 4, 4, 8)}, "does not fit"),
        ({"q_BTHD": torch.zeros(1, 4, 4, 16)}, "does not fit"),
        ({"q_BTHD": torch.zeros(1, 4, 3, 8)}, "does not fit"),
        ({"q_BTHD": torch.zeros(1, 7, 4, 8)}, "7 queries need at least as many keys, got 6"),
        ({"slopes_H": torch.ones(3)}, "slopes must be fp32"),
        ({"slopes_H": torch.ones(4, 1)}, "slopes must be fp32"),
        ({"slopes_H": torch.ones(4, dtype=torch.bfloat16)}, "slopes must be fp32"),
        ({"slopes_H": torch.ones(4, dtype=torch.float64)}, "slopes must be fp32"),
        ({"q_BTHD": torch.zeros(1, 4, 4, 8, dtype=torch.bfloat16)}, "share a dtype"),
        ({"slopes_H": torch.ones(4, device="meta")}, "one device"),
        ({"first_key_HN": torch.zeros(4, 2, dtype=torch.int64)}, r"plan must be \[4, 1\]"),
        ({"document_start_BT": torch.zeros(1, 6, dtype=torch.int64)}, r"document starts must be int64 \[1, 4\]"),
        ({"document_start_BT": torch.zeros(1, 4)}, "document starts must be int64"),
        ({"document_start_BT": torch.zeros(1, 4, dtype=torch.int64, device="meta")}, "document starts must be int64"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
def test_the_output_has_the_shape_of_the_queries(backend: Any) -> None:
    assert call(backend).shape == (1, 4, 4, 8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_query_sees_what_follows_it(backend: Any) -> None:
    q, k, v = random_inputs(400, 700)
    later_k, later_v = k.clone(), v.clone()
    later_k[:, 500:], later_v[:, 500:] = 1e3, -1e3
    slopes = torch.rand(3)
    before, after = (attention(q, *kv, slopes, scale=0.25, backend=backend) for kv in ((k, v), (later_k, later_v)))
    assert torch.equal(before[:, :200], after[:, :200])  # query t stands at position 300 + t
    assert not torch.allclose(before[:, 200:], after[:, 200:])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_chunks_of_queries_give_what_all_at_once_give(backend: Any) -> None:
    q, k, v = random_inputs(600, 600, dtype=torch.float64)
    slopes = torch.rand(3)
    whole = attention(q, k, v, slopes, scale=0.25, backend=backend)
    cuts = [0, 1, 63, 300, 600]
    chunks = [attention(q[:, a:b], k[:, :b], v[:, :b], slopes, scale=0.25, backend=backend) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, rtol=1e-12, atol=1e-14)
