"""Paged attention in its plainest form: gather every page, mask, softmax. The oracle of the backends."""

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.pages import gather_pages
from epilogue.kernels.paged_attention.storage import PageTensors


def paged_attention_reference(
    q_BTHD: Tensor,
    k: PageTensors,
    v: PageTensors,
    page_table_BKP: Tensor,
    num_keys_B: Tensor,
    slopes_H: Tensor,
    *,
    scale: float,
    first_page_BH: Tensor | None = None,
) -> Tensor:
    """Attention over gathered pages in O(B*H*S*(T + D)) memory, in fp32, or fp64 for fp64 queries.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    dtype = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    num_queries, group = q_BTHD.shape[1], q_BTHD.shape[2] // page_table_BKP.shape[1]
    page_tokens = k.data_PWD.shape[1]
    device = q_BTHD.device
    table_BHP = page_table_BKP.long().repeat_interleave(group, dim=1)

    keys_S = torch.arange(table_BHP.shape[2] * page_tokens, device=device)
    page_S = keys_S // page_tokens
    place_BT1 = (num_keys_B.long()[:, None] - num_queries + torch.arange(num_queries, device=device))[..., None]
    distance_BTS = place_BT1 - keys_S
    is_live_BHS = (table_BHP >= 0)[..., page_S] & (keys_S < num_keys_B[:, None, None])
    if first_page_BH is not None:
        is_live_BHS &= page_S >= first_page_BH[..., None]
    is_seen_BHTS = is_live_BHS[:, :, None] & (distance_BTS >= 0)[:, None]

    # What was never written may be NaN, which no weight of zero would silence.
    k_BHSD, v_BHSD = (
        gather_pages(pages, table_BHP.clamp(min=0), dtype=dtype).masked_fill(~is_live_BHS[..., None], 0.0)
        for pages in (k, v)
    )
    scores_BHTS = torch.einsum("bthd,bhsd->bhts", q_BTHD.to(dtype), k_BHSD) * scale
    scores_BHTS = scores_BHTS - slopes_H.to(dtype)[:, None, None] * distance_BTS[:, None]
    weights_BHTS = scores_BHTS.masked_fill(~is_seen_BHTS, -torch.inf).softmax(dim=-1)
    weights_BHTS = weights_BHTS.masked_fill(~is_seen_BHTS, 0.0)  # a query that sees nothing
    return torch.einsum("bhts,bhsd->bthd", weights_BHTS, v_BHSD).to(q_BTHD.dtype)
