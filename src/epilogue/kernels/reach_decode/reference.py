"""Decode of a layer in its plainest form, head by head and page by page: the oracle of the backend."""

import math

import torch
from torch import Tensor

from epilogue.kernels.paged_attention import (
    PAGE_TOKENS,
    PageTensors,
    dequantize,
    paged_attention,
    quantize,
    write_pages,
)
from epilogue.kernels.reach_decode.tables import Decoded, LayerTable, ScoreBounds


def reach_decode_reference(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    keys: PageTensors,
    values: PageTensors,
    table: LayerTable,
    slopes_H: Tensor,
    *,
    scale: float,
    epsilon: float,
) -> Decoded:
    """Like the op, through ``write_pages`` and ``paged_attention``; sums in fp64 for fp64 queries.

    Its bound is taken at every prefix for itself, so with several queries it may leave out a little more than a plan.
    """
    first, inside = divmod(table.num_tokens, PAGE_TOKENS)
    num_keys = table.num_tokens + len(q_THD)
    stop = -(-num_keys // PAGE_TOKENS)
    for pages, x_TKD in ((keys, k_TKD), (values, v_TKD)):
        write_pages(pages, x_TKD.transpose(0, 1), table.ids_KP[:, first:stop], inside)
    stored_KTD = dequantize(quantize(k_TKD.transpose(0, 1), keys.storage)).double()
    norms_KT = (stored_KTD.norm(dim=-1) * (1 + 2.0**-20)).float()
    _raise(table.norms_KP, torch.nextafter(norms_KT, torch.full_like(norms_KT, torch.inf)), first, inside)
    if table.bounds is not None:
        _raise(table.bounds.scores_HP, _largest_scores(table.bounds, stored_KTD.float()), first, inside)

    group = q_THD.shape[1] // k_TKD.shape[1]
    live_K = (torch.arange(1, stop + 1) * (table.ids_KP[:, :stop] < 0)).amax(dim=1)  # behind the last hole
    plans = [
        _plan(q_THD[:, head].double() * scale, stored_KTD[head // group], table.norms_KP[head // group, :stop].double(),
              float(slope), num_older=table.num_tokens, epsilon=epsilon)
        for head, slope in enumerate(slopes_H)
    ]  # fmt: skip
    live_H = live_K.repeat_interleave(group)
    planned_H = torch.tensor([pages for pages, _ in plans])
    first_page_H = torch.maximum(planned_H, live_H)
    mass_H = torch.tensor([mass for _, mass in plans], dtype=torch.float64)
    out_BTHD = paged_attention(
        q_THD[None], keys, values, table.ids_KP[None, :, :stop].int(), torch.tensor([num_keys]), slopes_H,
        scale=scale, first_page_BH=first_page_H[None], backend="reference",
    )  # fmt: skip
    return Decoded(out_BTHD[0], first_page_H, torch.where(planned_H < live_H, epsilon, mass_H))


def _raise(entries_HP: Tensor, new_HT: Tensor, first: int, inside: int) -> None:
    """Keep each page's largest; a page whose first token is new forgets what it held."""
    for t in range(new_HT.shape[1]):
        page, place = divmod(inside + t, PAGE_TOKENS)
        old_H = new_HT[:, t] if place == 0 else entries_HP[:, first + page]
        entries_HP[:, first + page] = torch.maximum(old_H, new_HT[:, t])


def _largest_scores(bounds: ScoreBounds, k_KTD: Tensor) -> Tensor:
    k_HTD = k_KTD.repeat_interleave(len(bounds.error_H) // len(k_KTD), dim=0)
    scores_HT = (k_HTD @ bounds.root_HDD.transpose(1, 2)).norm(dim=-1)
    scores_HT = scores_HT + (k_HTD @ bounds.offset_HD[..., None])[..., 0].abs()
    scores_HT = scores_HT + bounds.error_H[:, None] * k_HTD.norm(dim=-1)
    if bounds.clip < math.inf:
        scores_HT = torch.minimum(scores_HT, bounds.clip * k_HTD.abs().sum(-1))
    most_HT: Tensor = scores_HT * (1 + 1e-4)
    return most_HT


def _plan(
    q_TD: Tensor, k_TD: Tensor, norms_P: Tensor, slope: float, *, num_older: int, epsilon: float
) -> tuple[int, float]:
    """How many pages may be left out, and what they weigh at most: docs/numerics.md, in fp64."""
    if epsilon <= 0:
        return 0, 0.0
    tail = 1 / -math.expm1(-slope) if slope > 0 else math.inf
    floor_T = (q_TD * k_TD).sum(-1) + slope * torch.arange(len(q_TD))
    skipped, mass = 0, 0.0
    for older in range(PAGE_TOKENS, num_older + 1, PAGE_TOKENS):
        largest = norms_P[: skipped + 1].amax()
        nats = (q_TD.norm(dim=-1) * largest - floor_T).amax() - slope * (num_older - older + 1)
        bound = float(nats) + math.log(min(older, tail))
        if not (bound <= math.log(epsilon) and norms_P.isfinite().all()):
            break
        skipped, mass = skipped + 1, math.exp(bound)
    return skipped, mass
