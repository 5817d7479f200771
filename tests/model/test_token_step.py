"""One token of each text: its plan is that of any queries. What it writes: tests/engine/test_decoder.py."""

import math

import pytest
import torch

from epilogue.kernels.paged_attention import PAGE_TOKENS
from epilogue.model import alibi_slopes
from epilogue.model.reach import plan_reach, plan_tokens, prefix_costs, running_norms
from fresh_process import needs_triton, printed_by
from model.interpreted_steps import STORAGES, compare_all


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (8, 2), (12, 1)])
@pytest.mark.parametrize("bias_max", [2, 8, 16])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_its_plan_is_that_of_any_queries(heads: int, kv_heads: int, bias_max: int, epsilon: float) -> None:
    lengths = [1, 63, 128, 129, 1000, 70_001]
    pages = -(-max(lengths) // PAGE_TOKENS) + 3
    q_BTHD, k_BTKD = torch.randn(len(lengths), 1, heads, 16), torch.randn(len(lengths), 1, kv_heads, 16)
    norms_BKP, slopes_H = 6 * torch.rand(len(lengths), kv_heads, pages), alibi_slopes(heads, bias_max)
    costs_BHP = prefix_costs(slopes_H, torch.tensor(lengths), pages)
    running_BKP = running_norms(norms_BKP, 16)
    skipped_BH, mass_BH = plan_tokens(q_BTHD, k_BTKD, running_BKP, costs_BHP, scale=0.25, epsilon=epsilon)
    for b, num_keys in enumerate(lengths):
        plan = plan_reach(
            q_BTHD[b : b + 1],
            k_BTKD[b : b + 1],
            norms_BKP[b, :, : -(-num_keys // PAGE_TOKENS)],
            slopes_H,
            scale=0.25,
            epsilon=epsilon,
            num_keys=num_keys,
        )
        assert torch.equal(skipped_BH[b] * PAGE_TOKENS, plan.first_key_HN[:, 0])
        torch.testing.assert_close(mass_BH[b], plan.omitted_mass_HN[:, 0], rtol=1e-9, atol=0)
    assert skipped_BH[-1].max() > 0 or bias_max == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_where_a_query_or_its_key_is_not_finite_nothing_is_left_out(bad: float) -> None:
    q_BTHD, k_BTKD = torch.randn(3, 1, 2, 16), torch.randn(3, 1, 2, 16)
    q_BTHD[0, 0, 0, 3], k_BTKD[1, 0, 1, 5] = bad, bad
    costs_BHP = prefix_costs(alibi_slopes(2, 2), torch.tensor([5000] * 3), 40)
    skipped_BH, mass_BH = plan_tokens(
        q_BTHD, k_BTKD, running_norms(torch.ones(3, 2, 40), 16), costs_BHP, scale=0.25, epsilon=1e-6
    )
    assert (skipped_BH == 0).tolist() == [[True, False], [False, True], [False, False]]
    assert (mass_BH[skipped_BH == 0] == 0).all()


def test_a_page_behind_a_key_that_is_not_finite_is_looked_at() -> None:
    norms_BKP = torch.ones(1, 1, 40)
    norms_BKP[0, 0, 7] = math.nan
    skipped_BH, _ = plan_tokens(
        torch.randn(1, 1, 1, 16),
        torch.randn(1, 1, 1, 16),
        running_norms(norms_BKP, 16),
        prefix_costs(alibi_slopes(1, 2), torch.tensor([5000]), 40),
        scale=0.25,
        epsilon=1e-6,
    )
    assert skipped_BH.item() == 7


@needs_triton
def test_the_kernel_takes_tokens_in_as_the_operators_do() -> None:
    assert printed_by("model.interpreted_steps", interpreted=True).endswith("done\n")


@pytest.mark.gpu
@pytest.mark.parametrize("storage", STORAGES)
def test_on_an_accelerator_the_kernel_takes_tokens_in_as_the_operators_do(storage: str) -> None:
    compare_all(storage, "cuda")
