"""Paged attention on the CPU: a sequence's live pages of all heads in a few large calls, memory-bound.

The unit of work is an entry, one live page of one key head. Entries are read 64 at a time: their codes are copied
from the pool and widened to fp32 in buffers that stay in cache, less their zero points, and multiplied as they are.
Scales act on the products (keys) or on the weights (values), which are D times fewer than the codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from epilogue.kernels.paged_attention.rotation import rotate
from epilogue.kernels.paged_attention.storage import PageTensors, unpack

_ENTRIES_AT_ONCE = 64


def paged_attention_cpu(
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
    """Attention in fp32; memory beyond the inputs: the scores of one sequence, 4 bytes a query row and visited key.

    Returns:
        out_BTHD in the dtype of the queries.
    """
    num_queries, num_kv_heads = q_BTHD.shape[1], page_table_BKP.shape[1]
    q_BKRD = _rows_of_kv_heads(q_BTHD.float() * scale, num_kv_heads)
    slopes_KR = slopes_H.view(num_kv_heads, -1).repeat_interleave(num_queries, dim=1)
    if first_page_BH is None:
        first_page_BH = num_keys_B.new_zeros(1, 1).expand(len(q_BTHD), len(slopes_H))
    first_BKR = first_page_BH.unflatten(1, (num_kv_heads, -1)).repeat_interleave(num_queries, dim=2)
    k_reader, v_reader = _Reader.of(k), _Reader.of(v)

    out_BKRD = torch.empty_like(q_BKRD)
    for sequence, num_keys in enumerate(num_keys_B.tolist()):
        visit = _Visit.plan(page_table_BKP[sequence], first_BKR[sequence], num_keys, k.data_PWD.shape[1])
        position_R = torch.arange(num_keys - num_queries, num_keys).repeat(len(slopes_H) // num_kv_heads)
        scores_PRW = _scores(q_BKRD[sequence], k_reader, visit, slopes_KR, position_R)
        out_BKRD[sequence] = _average(scores_PRW, v_reader, visit, num_kv_heads)
    out_BHTD: Tensor = out_BKRD.unflatten(2, (-1, num_queries)).flatten(1, 2)
    return out_BHTD.transpose(1, 2).to(q_BTHD.dtype)


def _rows_of_kv_heads(q_BTHD: Tensor, num_kv_heads: int) -> Tensor:
    """Queries as rows of their key head: its heads in order, every head's T positions together."""
    q_BKRD: Tensor = q_BTHD.transpose(1, 2).unflatten(1, (num_kv_heads, -1)).flatten(2, 3)
    return q_BKRD.contiguous()


@dataclass(frozen=True)
class _Visit:
    """The entries to be visited, in the order of their pages, so that half-written pages come last."""

    head_P: Tensor
    column_P: Tensor
    """Where in the table the page stands."""
    id_P: Tensor
    first_PR: Tensor | None
    """The first column that each query row visits; None where no row of any entry leaves out what others visit."""
    num_keys: int
    page_tokens: int

    @classmethod
    def plan(cls, table_KP: Tensor, first_KR: Tensor, num_keys: int, page_tokens: int) -> "_Visit":
        columns = -(-num_keys // page_tokens)
        earliest_K, latest_K = first_KR.amin(1), first_KR.amax(1)
        is_live_KP = (table_KP[:, :columns] >= 0) & (torch.arange(columns) >= earliest_K[:, None])
        column_P, head_P = is_live_KP.T.nonzero(as_tuple=True)
        first_PR = None if torch.equal(earliest_K, latest_K) else first_KR[head_P]
        return cls(head_P, column_P, table_KP[head_P, column_P].long(), first_PR, num_keys, page_tokens)

    def chunks(self) -> list[slice]:
        return [slice(i, i + _ENTRIES_AT_ONCE) for i in range(0, len(self.id_P), _ENTRIES_AT_ONCE)]

    def unwritten(self, chunk: slice) -> tuple[slice, slice] | None:
        """Entries of a chunk, and their rows, that lie past the last key."""
        written = self.num_keys % self.page_tokens
        is_whole_P = self.column_P[chunk] < self.num_keys // self.page_tokens
        if written == 0 or bool(is_whole_P[-1]):
            return None
        return slice(int(is_whole_P.sum()), None), slice(written, None)


@dataclass(frozen=True)
class _Reader:
    """Copies pages of a pool into buffers that are used again and again."""

    pages: PageTensors
    raw_PWD: Tensor
    codes_PWD: Tensor

    @classmethod
    def of(cls, pages: PageTensors) -> "_Reader":
        raw = pages.data_PWD.new_empty(_ENTRIES_AT_ONCE, *pages.data_PWD.shape[1:])
        codes = raw if raw.dtype == torch.float32 else torch.empty(*raw.shape[:2], pages.head_dim)
        return cls(pages, raw, codes)

    @property
    def is_rotated(self) -> bool:
        return self.pages.zero_PW is not None

    def read(self, ids_P: Tensor) -> tuple[Tensor, Tensor | None]:
        """codes_PWD as fp32, less their zero points, and scale_PW; the codes are valid until the next call."""
        raw, codes = self.raw_PWD[: len(ids_P)], self.codes_PWD[: len(ids_P)]
        torch.index_select(self.pages.data_PWD, 0, ids_P, out=raw)
        if self.pages.zero_PW is not None:
            # From the codes and not from the products, whose difference would be rounded as the products are.
            zero_PW1 = self.pages.zero_PW.index_select(0, ids_P)[..., None]
            for half, nibbles in zip(codes.chunk(2, dim=-1), unpack(raw), strict=True):
                half.copy_(nibbles)
            codes -= zero_PW1
        elif codes.dtype != raw.dtype:
            codes.copy_(raw)
        scale_PW = self.pages.scale_PW
        return codes, None if scale_PW is None else scale_PW.index_select(0, ids_P)


def _scores(q_KRD: Tensor, keys: _Reader, visit: _Visit, slopes_KR: Tensor, position_R: Tensor) -> Tensor:
    """Biased scores of every entry, -inf where a row does not see a key."""
    q_KRD = rotate(q_KRD) if keys.is_rotated else q_KRD
    slopes_KR1 = slopes_KR[..., None]
    scores_PRW = torch.empty(len(visit.id_P), len(position_R), visit.page_tokens)
    keys_W = torch.arange(visit.page_tokens, dtype=torch.int64) - position_R[:, None]
    for chunk in visit.chunks():
        head_P, column_P, out = visit.head_P[chunk], visit.column_P[chunk], scores_PRW[chunk]
        codes_PWD, scale_PW = keys.read(visit.id_P[chunk])
        torch.bmm(q_KRD[head_P], codes_PWD.transpose(1, 2), out=out)
        if scale_PW is not None:
            out *= scale_PW[:, None]
        ahead_PRW = keys_W + (column_P * visit.page_tokens)[:, None, None]
        out += slopes_KR1[head_P] * ahead_PRW
        out.masked_fill_(ahead_PRW > 0, -torch.inf)
        if visit.first_PR is not None:
            out.masked_fill_((column_P[:, None] < visit.first_PR[chunk])[..., None], -torch.inf)
    return scores_PRW


def _average(scores_PRW: Tensor, values: _Reader, visit: _Visit, num_kv_heads: int) -> Tensor:
    """Softmax over all entries of a key head, and the values' average under it; the scores are used up."""
    head_P, width = visit.head_P, values.pages.head_dim
    num_rows = scores_PRW.shape[1]
    largest_KR = torch.full((num_kv_heads, num_rows), -torch.inf)
    head_PR = head_P[:, None].expand(-1, num_rows)
    largest_KR.scatter_reduce_(0, head_PR, scores_PRW.amax(-1), "amax")
    largest_KR.masked_fill_(largest_KR == -torch.inf, 0.0)  # a row that sees nothing
    weights_PRW = scores_PRW.sub_(largest_KR[head_P, :, None]).exp_()
    # Pages are added up in fp64: beside the one that weighs most, fp32 would round each of a thousand others away.
    sum_KR = torch.zeros_like(largest_KR, dtype=torch.float64)
    sum_KR.index_add_(0, head_P, weights_PRW.sum(-1, dtype=torch.float64))

    out_KRD = torch.zeros(num_kv_heads, num_rows, width, dtype=torch.float64)
    for chunk in visit.chunks():
        codes_PWD, scale_PW = values.read(visit.id_P[chunk])
        if past := visit.unwritten(chunk):
            for x in (codes_PWD, scale_PW):
                if x is not None:
                    x[past] = 0.0  # a weight of zero does not silence a NaN
        weights = weights_PRW[chunk] if scale_PW is None else weights_PRW[chunk] * scale_PW[:, None]
        out_KRD.index_add_(0, head_P[chunk], torch.bmm(weights, codes_PWD).double())
    out_KRD /= sum_KR[..., None].clamp(min=torch.finfo(torch.float32).tiny)
    return rotate(out_KRD.float()) if values.is_rotated else out_KRD.float()
