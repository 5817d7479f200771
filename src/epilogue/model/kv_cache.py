"""KVCache: what attention sees of sequences during one forward pass, over pages and within reach."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from epilogue.kernels.attention import Backend, attention, attention_over_pages, reads_pages
from epilogue.kernels.paged_attention import (
    MOST_QUERIES,
    PAGE_TOKENS,
    paged_attention,
    read_pages,
    write_chunk,
)
from epilogue.kernels.reach_decode import runs_natively
from epilogue.model.eviction import EvictionBounds
from epilogue.model.native_decode import decode_natively
from epilogue.model.page_pool import PagePool, PageTable
from epilogue.model.placed_table import PlacedTable, upload
from epilogue.model.reach import ReachPlan, plan_reach
from epilogue.model.reads import Reads


@dataclass(frozen=True)
class Segment:
    """New tokens of one sequence: ``num_tokens`` of them behind the table's, on pages the table lists already."""

    table: PageTable
    num_tokens: int
    reads: Reads | None = None
    """Counts what is visited, if anybody wants to know."""
    num_wanted: int | None = None
    """The last so many tokens' results are wanted; None wants all. Of the others the last layer makes keys and values
    and no more."""

    @property
    def stop(self) -> int:
        """Tokens the sequence has behind this pass."""
        return self.table.num_tokens + self.num_tokens

    @property
    def num_results(self) -> int:
        """How many tokens' results there are behind this pass."""
        return self.num_tokens if self.num_wanted is None else self.num_wanted


@dataclass
class KVCache:
    """The past of a forward pass over any number of sequences, whose new tokens stand one after the other in a row.

    ``attend`` writes a layer's new keys and values into the pages that the tables list and looks back from each new
    token as far as it must: older keys hold at most ``epsilon`` of its probability. The tables' ``num_tokens`` is left
    alone; whoever made the pass adds to it when all layers are through.
    """

    pool: PagePool
    segments: Sequence[Segment]
    epsilon: float = 1e-6
    bounds: EvictionBounds | None = None
    """Kept up with by every page that is written, if pages are to be evicted later."""
    _rows: list[slice] = field(init=False)
    """Each segment's among all new tokens."""
    _result_rows: list[slice] = field(init=False)
    """The same among those that results are wanted of."""
    _placed: dict[int, PlacedTable] = field(init=False, default_factory=dict)
    """Of segments, by their number, since a layer first asked."""
    _stops: dict[tuple[int, ...], Tensor] = field(init=False, default_factory=dict)
    """stop_B of segments that go through one call."""

    def __post_init__(self) -> None:
        self._rows = _one_behind_the_other(segment.num_tokens for segment in self.segments)
        self._result_rows = _one_behind_the_other(segment.num_results for segment in self.segments)

    @property
    def wanted(self) -> list[slice] | None:
        """Rows of the pass whose results anybody wants; None if all are."""
        if all(segment.num_wanted is None for segment in self.segments):
            return None
        return [
            slice(rows.stop - segment.num_results, rows.stop)
            for segment, rows in zip(self.segments, self._rows, strict=True)
            if segment.num_results
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest sequence behind this pass."""
        return max(segment.stop for segment in self.segments)

    def positions(self) -> Tensor:
        """positions_BT of the new tokens, for a model that has learned them; B is 1."""
        parts = [torch.arange(segment.table.num_tokens, segment.stop) for segment in self.segments]
        return torch.cat(parts)[None]

    def clips(self, x_BTC: Tensor) -> bool:
        """Never."""
        return False

    def attend(
        self,
        layer: int,
        q_BTHD: Tensor,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        slopes_H: Tensor,
        *,
        scale: float,
        backend: Backend | None = None,
    ) -> Tensor:
        """Take in a layer's new keys and values, and attend from their tokens; out_BTHD.

        The new tokens of all segments are the rows of q, k and v, in order, over batch and time together. Queries may
        be those of the ``wanted`` rows alone.
        """
        q_RHD, k_RKD, v_RKD = (x.flatten(0, 1) for x in (q_BTHD, k_BTKD, v_BTKD))
        out_RHD = torch.empty_like(q_RHD)
        plans: dict[int, ReachPlan] = {}
        natively = backend is None and runs_natively(q_RHD, self.pool.keys)
        q_rows = self._rows if len(q_RHD) == len(k_RKD) else self._result_rows
        for i, (segment, rows) in enumerate(zip(self.segments, self._rows, strict=True)):
            q_THD, k_TKD, v_TKD = q_RHD[q_rows[i]], k_RKD[rows], v_RKD[rows]
            if natively and len(q_THD) == segment.num_tokens <= MOST_QUERIES:
                out_RHD[q_rows[i]] = self._decode_natively(layer, segment, (q_THD, k_TKD, v_TKD), slopes_H, scale)
                continue
            stored_KTD = self._take_in(layer, i, k_TKD, v_TKD)
            if len(q_THD):
                plans[i] = self._plan(layer, i, q_THD, stored_KTD, slopes_H, scale)
        for indices in _together(plans, backend):
            parts = [(self._place(i), plans[i], q_RHD[q_rows[i]]) for i in indices]
            if backend is None and plans[indices[0]].num_queries <= MOST_QUERIES:
                outs = _decode(self.pool, layer, parts, self._stops_of(indices), slopes_H, scale)
            else:
                outs = [_read(self.pool, layer, *parts[0], slopes_H, scale, backend)]
            if len(self.segments) == 1:
                return outs[0].view_as(q_BTHD)
            for i, out_THD in zip(indices, outs, strict=True):
                out_RHD[q_rows[i]] = out_THD
        return out_RHD.view_as(q_BTHD)

    def _place(self, i: int) -> PlacedTable:
        if i not in self._placed:
            segment, device = self.segments[i], self.pool.keys.data_PWD.device
            self._placed[i] = PlacedTable.of(segment.table, segment.stop, device)
        return self._placed[i]

    def _stops_of(self, indices: list[int]) -> Tensor:
        key = tuple(indices)
        if key not in self._stops:
            stops = torch.tensor([self.segments[i].stop for i in indices])
            self._stops[key] = upload(stops, self.pool.keys.data_PWD.device)
        return self._stops[key]

    def _decode_natively(
        self, layer: int, segment: Segment, qkv: tuple[Tensor, Tensor, Tensor], slopes_H: Tensor, scale: float
    ) -> Tensor:
        """Take in a few tokens and attend from them, in one call of the extension."""
        table, num_queries = segment.table, segment.num_tokens
        decoded = decode_natively(
            self.pool, table, layer, qkv, slopes_H, scale=scale, epsilon=self.epsilon, bounds=self.bounds
        )
        if segment.reads is not None:
            dense = num_queries * table.num_tokens + num_queries * (num_queries + 1) // 2
            visited_H = dense - decoded.first_page_H * (PAGE_TOKENS * num_queries)
            segment.reads.count(visited_H, dense, decoded.omitted_mass_H)
        return decoded.out_THD

    def _take_in(self, layer: int, i: int, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Write new keys and values, and bring the bounds of their pages up to date; stored_KTD, the keys."""
        segment, placed, pool = self.segments[i], self._place(i), self.pool
        table = segment.table
        first, inside = divmod(table.num_tokens, PAGE_TOKENS)
        stop = -(-segment.stop // PAGE_TOKENS)
        ids_KP = placed.ids_LKP[layer, :, first:stop]
        stored_KTD, norms_KP = write_chunk((pool.keys, pool.values), k_TKD, v_TKD, ids_KP, inside)
        _raise_pages(table.norms_LKP[layer], norms_KP, first, inside)
        if self.bounds is not None:
            scores_HP = self.bounds.largest_of_pages(layer, stored_KTD, inside)
            _raise_pages(table.scores_LHP[layer], scores_HP, first, inside)
        return stored_KTD

    def _plan(self, layer: int, i: int, q_THD: Tensor, stored_KTD: Tensor, slopes_H: Tensor, scale: float) -> ReachPlan:
        """How far the last tokens, whose queries these are, must look back."""
        segment, num_queries = self.segments[i], len(q_THD)
        plan = plan_reach(
            q_THD[None],
            stored_KTD[:, -num_queries:].transpose(0, 1)[None],
            segment.table.norms_LKP[layer, :, : -(-segment.stop // PAGE_TOKENS)],
            slopes_H,
            scale=scale,
            epsilon=self.epsilon,
            num_keys=segment.stop,
        )
        plan = _within(plan, self._place(i).first_live_LK[layer], self.epsilon)
        if segment.reads is not None:
            segment.reads.add(plan)
        return plan


def _one_behind_the_other(counts: Iterable[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(accumulate(counts, initial=0))]


def _together(plans: Mapping[int, ReachPlan], backend: Backend | None) -> list[list[int]]:
    """Segments, by their number, that go through one call: few queries, and equally many."""
    order = sorted(plans, key=lambda i: plans[i].num_queries)
    groups = [list(group) for _, group in groupby(order, key=lambda i: plans[i].num_queries)]
    few = [g for g in groups if backend is None and plans[g[0]].num_queries <= MOST_QUERIES]
    return few + [[i] for g in groups if g not in few for i in g]


def _raise_pages(kept_HP: Tensor, new_HP: Tensor, first: int, inside: int) -> None:
    """Keep each page's largest: of new tokens, and where they begin inside a page, of those before them."""
    if inside:
        new_HP[:, 0] = torch.maximum(new_HP[:, 0], kept_HP[:, first])
    kept_HP[:, first : first + new_HP.shape[1]] = new_HP


def _within(plan: ReachPlan, first_live_K: Tensor, epsilon: float) -> ReachPlan:
    """The plan without the pages that were evicted, of which is certified that they weigh at most epsilon."""
    heads, kv_heads = len(plan.first_key_HN), len(first_live_K)
    edge_H1 = (first_live_K * PAGE_TOKENS).repeat_interleave(heads // kv_heads)[:, None]
    mass_HN = plan.omitted_mass_HN.masked_fill(plan.first_key_HN < edge_H1, epsilon)
    return ReachPlan(torch.maximum(plan.first_key_HN, edge_H1), mass_HN, plan.num_keys, plan.num_queries)


def _decode(
    pool: PagePool,
    layer: int,
    parts: Sequence[tuple[PlacedTable, ReachPlan, Tensor]],
    stop_B: Tensor,
    slopes_H: Tensor,
    scale: float,
) -> list[Tensor]:
    """A few tokens each of several sequences, in one call."""
    ids = [placed.ids_LKP[layer] for placed, _, _ in parts]
    width = max(ids_KP.shape[1] for ids_KP in ids)
    padded = [torch.nn.functional.pad(ids_KP, (0, width - ids_KP.shape[1]), value=-1) for ids_KP in ids]
    out_BTHD = paged_attention(
        torch.stack([q_THD for _, _, q_THD in parts]),
        pool.keys,
        pool.values,
        torch.stack(padded).to(torch.int32),
        stop_B,
        slopes_H,
        scale=scale,
        first_page_BH=torch.stack([plan.first_key_HN[:, 0] // PAGE_TOKENS for _, plan, _ in parts]),
    )
    return list(out_BTHD)


def _first_pages(plan: ReachPlan, kv_heads: int) -> Tensor:
    """first_page_K that any query of a head of keys visits."""
    return (plan.first_key_HN.amin(dim=1) // PAGE_TOKENS).view(kv_heads, -1).amin(dim=1)


def _edges(placed: PlacedTable, layer: int, first_page_K: Tensor) -> list[int]:
    """The first page to gather for each head of keys: the first one visited, or on an accelerator one for all.

    There one call for all heads costs less than many, and nobody waits to hear what the plan says.
    """
    if first_page_K.device.type != "cpu":
        return [placed.oldest_live_L[layer]] * len(first_page_K)
    edges: list[int] = first_page_K.tolist()
    return edges


def _read(
    pool: PagePool,
    layer: int,
    placed: PlacedTable,
    plan: ReachPlan,
    q_THD: Tensor,
    slopes_H: Tensor,
    scale: float,
    backend: Backend | None,
) -> Tensor:
    """Many tokens of one sequence: from the pages where they lie, or gathered for neighbouring heads with one edge."""
    # Where another head's page was evicted nothing is read: the plan visits only pages that are live.
    ids_KP = placed.ids_LKP[layer]
    if backend is None and reads_pages(q_THD, pool.keys):
        return attention_over_pages(
            q_THD, pool.keys, pool.values, ids_KP, slopes_H,
            num_keys=plan.num_keys, scale=scale, first_key_HN=plan.first_key_HN,
        )  # fmt: skip
    group = q_THD.shape[1] // len(ids_KP)
    first_page_K = _first_pages(plan, len(ids_KP))
    edges = _edges(placed, layer, first_page_K)
    wide = torch.float32 if q_THD.dtype == torch.float16 else q_THD.dtype
    outs = []
    for edge, run in groupby(range(len(edges)), key=edges.__getitem__):
        members = list(run)
        kv_heads = slice(members[0], members[-1] + 1)
        heads = slice(kv_heads.start * group, kv_heads.stop * group)
        k_SKD, v_SKD = read_pages(
            (pool.keys, pool.values),
            ids_KP[kv_heads, edge:],
            num_tokens=plan.num_keys - edge * PAGE_TOKENS,
            dtype=wide,
            # Kernels that were chosen go by the plan; a reference that was asked for masks what must be numbers.
            first_page_K=first_page_K[kv_heads] - edge if backend is None else None,
        )
        out_BTHD = attention(
            q_THD[None, :, heads].to(wide),
            k_SKD[None],
            v_SKD[None],
            slopes_H if len(members) == len(edges) else slopes_H[heads],  # itself, by which a kernel knows it
            scale=scale,
            first_key_HN=plan.first_key_HN[heads] - edge * PAGE_TOKENS,
            backend=backend,
        )
        outs.append(out_BTHD[0])
    out_THD = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
    return out_THD.to(q_THD.dtype)
