"""What a plan leaves out weighs no more than it says, on any input; and what that does to the output and to a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from epilogue.kernels.attention import TILE_TOKENS, attention
from epilogue.model import MPT, AttentionConfig, KVCache, MPTConfig, alibi_slopes, blocks
from epilogue.model.kv_cache import Reads, Segment
from epilogue.model.page_pool import PagePool, PageTable
from epilogue.model.reach import PAGE_TOKENS, ReachPlan, page_norms, plan_reach

KINDS: dict[str, Callable[[Tensor, Tensor], None]] = {}
"""What makes random queries and keys hard, in place."""


def kind(change: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    KINDS[change.__name__] = change
    return change


@kind
def plain(q: Tensor, k: Tensor) -> None: ...


@kind
def huge_norms(q: Tensor, k: Tensor) -> None:
    q *= 300
    k *= 300


@kind
def parallel_and_huge(q: Tensor, k: Tensor) -> None:
    """Cauchy-Schwarz is an equality, and a score has few decimals left."""
    k[...] = 1000 * k[:, :1]
    q[...] = 1000 * q[:, :1]
    q[..., : k.shape[-1]] = k[:, :1].repeat_interleave(q.shape[2] // k.shape[2], dim=2)


@kind
def tiny_norms(q: Tensor, k: Tensor) -> None:
    """Their squares vanish in fp32; the scores need not."""
    q *= 1e18
    k *= 1e-24


@kind
def one_giant_key_far_away(q: Tensor, k: Tensor) -> None:
    k[:, 3] *= 1000


@kind
def a_giant_key_among_the_newest(q: Tensor, k: Tensor) -> None:
    k[:, -1] *= 1000


@kind
def equal_norms(q: Tensor, k: Tensor) -> None:
    q /= q.norm(dim=-1, keepdim=True)
    k /= k.norm(dim=-1, keepdim=True)


@kind
def zero_keys(q: Tensor, k: Tensor) -> None:
    k *= 0


@kind
def zero_keys_but_one(q: Tensor, k: Tensor) -> None:
    k[:, 1:] *= 0


@kind
def a_sink_at_position_0(q: Tensor, k: Tensor) -> None:
    """Every query looks at the first key, and away from its own."""
    group = q.shape[2] // k.shape[2]
    k *= 0.1
    k[:, 0] = 5
    q[...] = 2 * k[:, :1].repeat_interleave(group, dim=2)


@kind
def away_from_oneself(q: Tensor, k: Tensor) -> None:
    """A query's own key is its worst, so the lower bound of the log-sum-exp is as low as it gets."""
    group = q.shape[2] // k.shape[2]
    q[...] = -3 * k[:, k.shape[1] - q.shape[1] :].repeat_interleave(group, dim=2)


@kind
def norms_grow_with_position(q: Tensor, k: Tensor) -> None:
    k *= torch.linspace(0.01, 4, k.shape[1])[:, None, None]


@kind
def norms_shrink_with_position(q: Tensor, k: Tensor) -> None:
    k *= torch.linspace(4, 0.01, k.shape[1])[:, None, None]


@kind
def near_duplicates(q: Tensor, k: Tensor) -> None:
    k[...] = k[:, :1] + 1e-4 * k


@kind
def one_query_shouts(q: Tensor, k: Tensor) -> None:
    q *= 0.1
    q[:, q.shape[1] // 2] *= 300


@dataclass(frozen=True)
class Problem:
    q_BTHD: Tensor
    k_BSKD: Tensor
    v_BSKD: Tensor
    slopes_H: Tensor
    scale: float

    def plan(self, epsilon: float) -> ReachPlan:
        own_k_BTKD = self.k_BSKD[:, self.k_BSKD.shape[1] - self.q_BTHD.shape[1] :]
        return plan_reach(
            self.q_BTHD, own_k_BTKD, page_norms(self.k_BSKD), self.slopes_H,
            scale=self.scale, epsilon=epsilon, num_keys=self.k_BSKD.shape[1],
        )  # fmt: skip

    def attend(self, plan: ReachPlan | None = None) -> Tensor:
        return attention(
            self.q_BTHD.double(), self.k_BSKD.double(), self.v_BSKD.double(), self.slopes_H,
            scale=self.scale, first_key_HN=None if plan is None else plan.first_key_HN, backend="reference",
        )  # fmt: skip

    def omitted(self, plan: ReachPlan) -> Tensor:
        """Of every query's probability, what the plan leaves out: omitted_BHT, from all scores in fp64."""
        num_queries, num_keys = self.q_BTHD.shape[1], self.k_BSKD.shape[1]
        k_BSHD = self.k_BSKD.double().repeat_interleave(self.q_BTHD.shape[2] // self.k_BSKD.shape[2], dim=2)
        distance_TS = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
        scores_BHTS = torch.einsum("bthd,bshd->bhts", self.q_BTHD.double(), k_BSHD) * self.scale
        scores_BHTS -= self.slopes_H.double()[:, None, None] * distance_TS
        shares_BHTS = scores_BHTS.masked_fill_(distance_TS < 0, -math.inf).softmax(dim=-1)
        is_visited = torch.arange(num_keys) >= by_query(plan.first_key_HN, num_queries)[..., None]
        return shares_BHTS.masked_fill_(is_visited, 0).sum(-1)


def by_query(x_HN: Tensor, num_queries: int) -> Tensor:
    """A tile's number for each of its queries, as [H, T]."""
    return x_HN.repeat_interleave(TILE_TOKENS, dim=1)[:, :num_queries]


def problem(
    num_queries: int,
    num_keys: int,
    change: Callable[[Tensor, Tensor], None] = plain,
    *,
    batch: int = 1,
    kv_heads: int = 4,
    group: int = 1,
    head_dim: int = 16,
    scale: float = 0.25,
    slopes_H: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    q = torch.randn(batch, num_queries, kv_heads * group, head_dim)
    k, v = torch.randn(2, batch, num_keys, kv_heads, head_dim)
    change(q, k)
    slopes_H = alibi_slopes(kv_heads * group) if slopes_H is None else slopes_H
    return Problem(q.to(dtype), k.to(dtype), v.to(dtype), slopes_H, scale)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    kv_heads, group = draw(st.sampled_from([(1, 1), (3, 1), (1, 3), (2, 2)]))
    heads = kv_heads * group
    torch.manual_seed(draw(st.integers(0, 1000)))
    num_queries = draw(st.sampled_from([1, 2, 63, 255, 256, 257, 400]))
    older = draw(st.sampled_from([0, 1, 127, 128, 129, 300, 511, 640]))
    bias = draw(st.sampled_from(["8", "16", "steep", "none", "mixed"]))
    slopes_H = {
        "8": alibi_slopes(heads, 8),
        "16": alibi_slopes(heads, 16),
        "steep": torch.full((heads,), 50.0),
        "none": torch.zeros(heads),
        "mixed": torch.linspace(0, 2, heads + 1)[:heads],
    }[bias]
    return problem(
        num_queries,
        num_queries + older,
        KINDS[draw(st.sampled_from(sorted(KINDS)))],
        batch=draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        group=group,
        head_dim=draw(st.sampled_from([1, 5, 64])),
        scale=draw(st.sampled_from([0.125, 1.0, -0.25, 0.0, 1e-6, 20.0])),
        slopes_H=slopes_H,
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
    )


def assert_proved(case: Problem, epsilon: float) -> ReachPlan:
    """The plan is well formed, its certificate is true, and the output is as near as the certificate says."""
    plan = case.plan(epsilon)
    num_queries, num_keys = case.q_BTHD.shape[1], case.k_BSKD.shape[1]
    starts_N = torch.arange(num_keys - num_queries, num_keys, TILE_TOKENS)
    assert plan.first_key_HN.shape == plan.omitted_mass_HN.shape == (len(case.slopes_H), len(starts_N))
    assert plan.first_key_HN.dtype == torch.int64
    assert not (plan.first_key_HN % PAGE_TOKENS).any()
    assert (plan.first_key_HN >= 0).all()
    assert (plan.first_key_HN <= starts_N).all()
    assert (plan.omitted_mass_HN <= epsilon).all()

    certified_HT = by_query(plan.omitted_mass_HN, num_queries)
    assert (case.omitted(plan) <= certified_HT).all()
    error_BHT = (case.attend(plan) - case.attend()).norm(dim=-1).transpose(1, 2)
    largest = case.v_BSKD.double().norm(dim=-1).max().item()
    assert (error_BHT <= 2 * certified_HT * largest + 1e-13 * largest).all()
    return plan


@given(problems(), st.sampled_from([1e-12, 1e-6, 1e-3, 0.3]))
@settings(max_examples=150)
def test_no_more_is_left_out_than_certified(case: Problem, epsilon: float) -> None:
    assert_proved(case, epsilon)


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS)
def test_each_hard_kind(change: Callable[[Tensor, Tensor], None]) -> None:
    """At an odd offset, where at least some heads have something to skip."""
    slopes_H = torch.tensor([2.0, 0.25, 0.01, 0.0])
    for dtype in (torch.float32, torch.float64):
        assert_proved(problem(300, 1037, change, kv_heads=2, group=2, slopes_H=slopes_H, dtype=dtype), 1e-6)


@given(problems())
@settings(max_examples=25)
def test_a_smaller_epsilon_never_skips_more(case: Problem) -> None:
    plans = [case.plan(epsilon) for epsilon in (0.0, 1e-300, 1e-12, 1e-6, 1e-3, 1.0)]
    for smaller, larger in pairwise(plans):
        assert (smaller.first_key_HN <= larger.first_key_HN).all()


def test_epsilon_0_visits_everything() -> None:
    case = problem(300, 900)
    plan = case.plan(0)
    assert not plan.first_key_HN.any()
    assert not plan.omitted_mass_HN.any()
    assert torch.equal(case.attend(plan), case.attend())


def test_steep_heads_skip_and_flat_ones_do_not() -> None:
    plan = assert_proved(problem(2000, 2000, slopes_H=torch.tensor([1.0, 0.1, 0.001, 0.0])), 1e-6)
    last_start = 1792
    assert plan.first_key_HN[0, -1] == last_start - PAGE_TOKENS
    assert PAGE_TOKENS < plan.first_key_HN[1, -1] < last_start - PAGE_TOKENS
    assert not plan.first_key_HN[2:].any()


@pytest.mark.parametrize("slope", [1.0, 0.1, 0.02])
def test_where_keys_are_equal_the_bound_is_the_mass(slope: float) -> None:
    """But for the row's log-sum-exp, of which only the own key is counted: a factor 1 / (1 - exp(-slope))."""
    case = problem(256, 2048, zero_keys, kv_heads=1, slopes_H=torch.tensor([slope]))
    plan = case.plan(1e-6)
    assert plan.first_key_HN.item() > 0
    truth = case.omitted(plan).max().item()
    assert truth < plan.omitted_mass_HN.item() <= truth * math.exp(0.02) / -math.expm1(-slope)


def tight(seed: int) -> Problem:
    """Every step of the proof nearly an equality, so that a wrong one shows: parallel keys, own keys that outshine the
    rest of the tile; queries, pages, heads and sequences of very different sizes.
    """
    torch.manual_seed(seed)
    batch, kv_heads, group = [(2, 1, 3), (1, 3, 1), (2, 2, 2), (1, 2, 3)][seed % 4]
    num_queries, older = [1, 5, 256, 300][seed // 4 % 4], [128, 300, 700, 1024][seed // 16 % 4]
    shines_BTK = torch.rand(batch, num_queries, kv_heads) < (0.1 if num_queries > 5 else 0.7)
    size_BTH = torch.exp(3.5 * torch.rand(batch, num_queries, kv_heads * group)) * torch.rand(batch, 1, 1)
    page_BPK = 1.3 * torch.rand(batch, math.ceil(older / PAGE_TOKENS), kv_heads)
    older_BSK = page_BPK.repeat_interleave(PAGE_TOKENS, dim=1)[:, :older]
    q_BTHD = (size_BTH * shines_BTK.repeat_interleave(group, dim=2))[..., None]
    k_BSKD = torch.cat([older_BSK, shines_BTK.float()], dim=1)[..., None]
    slopes_H = 10 ** (2 * torch.rand(kv_heads * group) - 1.5)
    return Problem(q_BTHD, k_BSKD, torch.randn_like(k_BSKD), slopes_H, 1.0)


def test_where_the_bound_is_tight_it_holds() -> None:
    tightest = 0.0
    for seed in range(128):
        case, epsilon = tight(seed), 10.0 ** -(seed % 5)
        plan = assert_proved(case, epsilon)
        certified_HT = by_query(plan.omitted_mass_HN, case.q_BTHD.shape[1])
        tightest = max(tightest, (case.omitted(plan) / certified_HT.clamp(min=1e-300)).max().item())
    assert tightest > 0.9


def test_norms_that_fp32_rounds_down_do_not_let_mass_slip() -> None:
    """A bug once: |q| |k| of 1e8 nats has an fp32 error of whole nats, and 78 % of a row went missing."""
    for size in (1e2, 1e3, 1e4):
        direction = torch.randn(1, 1, 4, 64)
        same = (size * direction / direction.norm(dim=-1, keepdim=True)).expand(1, 1024, 4, 64)
        assert_proved(Problem(same, same, torch.randn(1, 1024, 4, 64), torch.tensor([1, 0.5, 0.25, 0.1]), 1.0), 1e-6)


def test_norms_that_vanish_in_fp32_do_not_let_mass_slip() -> None:
    """A bug once: the squares of 1e-25 are 0 in fp32, yet against fp64 queries of 1e27 the scores are hundreds."""
    case = problem(256, 1024, kv_heads=1, slopes_H=torch.tensor([0.1]), scale=1.0)
    q, k = torch.full_like(case.q_BTHD, 1e27), torch.full_like(case.k_BSKD, 1e-25)
    k[:, 512:] = 0
    assert_proved(Problem(q, k, case.v_BSKD, case.slopes_H, 1.0), 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("which", ["q", "own key", "old key"])
def test_what_is_not_finite_is_not_skipped(which: str, bad: float) -> None:
    """1e30 is finite, its norm in fp32 is not."""
    case = problem(300, 900, slopes_H=torch.full((4,), 3.0), dtype=torch.float32)
    assert case.plan(1e-6).first_key_HN.all()
    place = {"q": case.q_BTHD[0, 7], "own key": case.k_BSKD[0, -5], "old key": case.k_BSKD[0, 2]}[which]
    place[1, 0] = bad
    plan = case.plan(1e-6)
    spoilt_N = plan.first_key_HN[1, :1] if which == "q" else plan.first_key_HN[1]
    assert not spoilt_N.any()
    assert plan.first_key_HN[[0, 2, 3]].all()
    assert plan.omitted_mass_HN.isfinite().all()


@pytest.mark.parametrize("epsilon", [1.0, 5.0, math.inf])
def test_an_epsilon_that_allows_all_still_leaves_the_tile_its_own_keys(epsilon: float) -> None:
    assert_proved(problem(400, 1037, slopes_H=torch.tensor([9.0, 1, 0.1, 0])), epsilon)


@pytest.mark.parametrize("slope", [-0.0, -0.5, math.nan, math.inf])
def test_slopes_that_are_no_alibi_skip_nothing(slope: float) -> None:
    plan = problem(300, 900, kv_heads=1, slopes_H=torch.tensor([slope])).plan(1e-6)
    assert not plan.first_key_HN.any()


def test_norms_may_be_upper_bounds() -> None:
    """A cache keeps the norms of forgotten keys, and its buffer may be longer than the keys."""
    case = problem(300, 1037, dtype=torch.float32)
    exact_KP = page_norms(case.k_BSKD)
    loose_KP = torch.nn.functional.pad(exact_KP * (1 + torch.rand_like(exact_KP)), (0, 2), value=50.0)
    plans = [
        plan_reach(case.q_BTHD, case.k_BSKD[:, -300:], norms_KP, case.slopes_H, scale=0.25, epsilon=1e-6, num_keys=1037)
        for norms_KP in (exact_KP, loose_KP)
    ]
    assert plans[1].first_key_HN.any()
    for plan in plans:
        assert (case.omitted(plan) <= by_query(plan.omitted_mass_HN, 300)).all()
    assert (plans[1].first_key_HN <= plans[0].first_key_HN).all()


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 400])
def test_page_norms(tokens: int) -> None:
    k = torch.randn(2, tokens, 3, 7)
    norms_KP = page_norms(k)
    assert norms_KP.shape == (3, math.ceil(tokens / PAGE_TOKENS))
    for head in range(3):
        for page in range(norms_KP.shape[1]):
            keys = k[:, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS, head].double()
            expected = max(math.sqrt(key.square().sum().item()) for key in keys.flatten(0, 1))
            assert norms_KP[head, page].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 700), (257, 513), (300, 1037), (600, 600)])
def test_visited_pairs_are_counted(queries: int, keys: int) -> None:
    plan = problem(queries, keys, slopes_H=torch.tensor([3.0, 0.3, 0.1, 0.0])).plan(1e-6)
    visited_H, dense = plan.visited()
    position_T = torch.arange(keys - queries, keys)
    first_key_HT = by_query(plan.first_key_HN, queries)
    for head in range(4):
        pairs = sum(max(0, p - first + 1) for p, first in zip(position_T, first_key_HT[head], strict=True))
        assert visited_H[head].item() == pairs
    assert dense == (position_T + 1).sum()


def test_gradients_are_as_near_as_the_certificate_says() -> None:
    """docs/numerics.md: per query, 6 times the mass for scores, 2 times for values."""
    case = problem(400, 1037, kv_heads=2, group=2)
    plan = case.plan(1e-3)
    assert plan.omitted_mass_HN.max() > 1e-6
    leaves = [x.clone().requires_grad_() for x in (case.q_BTHD, case.k_BSKD, case.v_BSKD)]
    grad_out = torch.randn_like(case.q_BTHD)
    with_plan, dense = (
        torch.autograd.grad(Problem(*leaves, case.slopes_H, case.scale).attend(used), leaves, grad_out)
        for used in (plan, None)
    )
    dq, dk, dv = (a - b for a, b in zip(with_plan, dense, strict=True))
    mass_TH = by_query(plan.omitted_mass_HN, 400).T
    pull_BTH = mass_TH * grad_out.norm(dim=-1)
    norm_k, norm_v = (x.norm(dim=-1).max() for x in (case.k_BSKD, case.v_BSKD))
    scores_BTH = 6 * case.scale * norm_v * pull_BTH
    assert dq.any()
    assert (dq.norm(dim=-1) <= scores_BTH * norm_k + 1e-13).all()
    from_queries_BTK = (scores_BTH * case.q_BTHD.norm(dim=-1)).unflatten(2, (-1, 2)).sum(-1)
    assert (dk.norm(dim=-1) <= from_queries_BTK.sum(1, keepdim=True) + 1e-12).all()
    assert (dv.norm(dim=-1) <= 2 * pull_BTH.unflatten(2, (-1, 2)).sum(-1).sum(1, keepdim=True) + 1e-12).all()


CONFIG = MPTConfig(
    d_model=64, n_heads=4, n_layers=2, vocab_size=97, no_bias=True, attn_config=AttentionConfig(alibi=True)
)


def trained_looking(config: MPTConfig) -> MPT:
    """Random weights large enough for scores of many nats."""
    model = MPT(config).double()
    model.init_weights(std=0.3)
    return model


@torch.no_grad()
def test_logits_move_by_the_order_of_epsilon() -> None:
    model, ids = trained_looking(CONFIG), torch.randint(97, (1, 3000))
    truth = model(ids)
    for epsilon in (1e-6, 1e-2):
        model.set_epsilon(epsilon)
        difference = (model(ids) - truth).abs().max() / truth.abs().max()
        assert 0 < difference <= 2 * CONFIG.n_layers * epsilon


@torch.no_grad()
def test_logits_through_a_cache_move_by_the_order_of_epsilon() -> None:
    """Keys and values are kept in fp32, and are computed and looked at in fp64."""
    model, ids = trained_looking(CONFIG), torch.randint(97, (1, 3000))
    dense_reads, fp32_noise = Reads.none(4), 1e-6
    truth = read_in_chunks(model, ids, dense_reads, epsilon=0)
    assert dense_reads.share == 1
    for epsilon in (1e-6, 1e-2):
        reads = Reads.none(4)
        logits = read_in_chunks(model, ids, reads, epsilon=epsilon)
        assert reads.share < 0.9
        difference = (logits - truth).abs().max() / truth.abs().max()
        assert difference <= 2 * CONFIG.n_layers * epsilon + fp32_noise


def paged(config: MPTConfig, capacity_tokens: int) -> tuple[PagePool, PageTable]:
    """A pool that one sequence has to itself."""
    table = PageTable.empty(config, capacity_tokens=capacity_tokens)
    pool = PagePool(config, num_pages=table.ids_LKP.numel())
    table.ids_LKP[...] = torch.arange(pool.num_pages).view_as(table.ids_LKP)
    return pool, table


def read_in_chunks(model: MPT, ids: Tensor, reads: Reads, *, epsilon: float) -> Tensor:
    """All logits."""
    pool, table = paged(model.config, ids.shape[1])
    logits = []
    for chunk in ids.split([1, 700, 1299, 999, 1], dim=1):
        segment = Segment(table, chunk.shape[1], reads)
        logits.append(model(chunk, KVCache(pool, [segment], epsilon=epsilon)))
        table.num_tokens = segment.stop
    return torch.cat(logits, dim=1)


def test_training_gradients_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = trained_looking(CONFIG), torch.randint(97, (1, 1501))
    gradients, plans = [], list[ReachPlan]()

    def plan_seen(*args: Any, **kwargs: Any) -> ReachPlan:
        plans.append(plan_reach(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(blocks, "plan_reach", plan_seen)
    for epsilon in (0.0, 1e-9):
        model.set_epsilon(epsilon)
        gradients.append(torch.autograd.grad(model(ids[:, :-1]).logsumexp(-1).mean(), list(model.parameters())))
    skipped_H = torch.stack([1 - visited_H / dense for visited_H, dense in (plan.visited() for plan in plans)]).amin(0)
    assert skipped_H[0] > 0.4, "the steepest head was meant to skip a good part"
    for name, a, b in zip(dict(model.named_parameters()), *gradients, strict=True):
        assert (a - b).norm() <= 1e-8 * a.norm(), name


def packed(lengths: list[int], batch: int) -> Tensor:
    """document_start_BT of documents of these lengths, one after the other."""
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    return starts.repeat_interleave(torch.tensor(lengths)).expand(batch, -1).contiguous()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_among_packed_documents_the_certificate_holds(backend: Any) -> None:
    """What a query may not see weighs nothing, so a plan made without documents leaves out even less."""
    slopes_H = torch.tensor([0.2, 0.05, 0.03, 0.0])
    case = problem(900, 900, kv_heads=2, group=2, batch=2, scale=0.05, slopes_H=slopes_H)
    lengths, plan = [20, 650, 1, 229], case.plan(0.1)
    certified_HT = by_query(plan.omitted_mass_HN, 900)
    assert certified_HT.any()
    together = attention(
        case.q_BTHD, case.k_BSKD, case.v_BSKD, case.slopes_H, scale=case.scale, backend=backend,
        first_key_HN=plan.first_key_HN, document_start_BT=packed(lengths, 2),
    )  # fmt: skip
    documents = zip(*(x.split(lengths, dim=1) for x in (case.q_BTHD, case.k_BSKD, case.v_BSKD)), strict=True)
    apart = torch.cat([Problem(*document, case.slopes_H, case.scale).attend() for document in documents], dim=1)
    error_BHT, largest = (together - apart).norm(dim=-1).transpose(1, 2), case.v_BSKD.norm(dim=-1).max()
    assert error_BHT.max() > 1e-9, "something was meant to be left out"
    assert (error_BHT <= 2 * certified_HT * largest + 1e-12).all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-9])
@pytest.mark.parametrize("alibi", [True, False])
def test_a_model_trains_on_packed_documents_as_on_each_alone(alibi: bool, epsilon: float) -> None:
    settings = replace(CONFIG.attn_config, alibi=alibi)
    model = MPT(replace(CONFIG, attn_config=settings, max_seq_len=800)).double()
    model.init_weights(std=0.1)
    lengths, weights = [63, 500, 1, 236], list(model.parameters())
    ids, targets = torch.randint(97, (2, 2, 800))
    apart = 0
    for part_ids, part_targets in zip(ids.split(lengths, dim=1), targets.split(lengths, dim=1), strict=True):
        apart = apart + model.loss(part_ids, part_targets) * part_ids.shape[1] / 800
    wanted = torch.autograd.grad(apart, weights)
    model.set_epsilon(epsilon)
    together = model.loss(ids, targets, packed(lengths, 2))
    torch.testing.assert_close(together, apart)
    for ours, theirs in zip(torch.autograd.grad(together, weights), wanted, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()  # the loss is taken in fp32
    assert (model.loss(ids, targets) - apart).abs() > 1e-4, "without their starts documents see one another"


def test_documents_and_a_cache_do_not_go_together() -> None:
    model, ids = MPT(CONFIG), torch.zeros(1, 3, dtype=torch.int64)
    pool, table = paged(CONFIG, 3)
    cache = KVCache(pool, [Segment(table, 3)])
    with pytest.raises(ValueError, match="without a cache"):
        model(ids, cache, document_start_BT=torch.zeros_like(ids))
