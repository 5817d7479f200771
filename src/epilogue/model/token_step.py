"""TokenStep: a forward pass over one new token of each of several texts that reads nothing on the host.

Everything it looks at is a tensor of fixed address and shape, so that the whole pass can be captured in a CUDA graph
and replayed for token after token. What is on the host stays outside: the engine fills ``TokenTables`` when a page is
gained, given back or full, and takes the ``TokenResults`` into its tables.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from epilogue.kernels.attention import Backend
from epilogue.kernels.paged_attention import (
    PAGE_TOKENS,
    Rows,
    TakenIn,
    can_take_in,
    dequantize,
    paged_attention,
    quantize,
    row_norms,
    take_in,
    write_rows,
)
from epilogue.kernels.paged_attention import Backend as PagedBackend
from epilogue.model.config import MPTConfig
from epilogue.model.eviction import EvictionBounds
from epilogue.model.mpt import MPT
from epilogue.model.page_pool import PagePool, PageTable
from epilogue.model.placed_table import upload
from epilogue.model.reach import plan_tokens, prefix_bounds, prefix_costs, running_norms


@dataclass(frozen=True)
class TokenTables:
    """Of B texts, what a pass over one token each needs of their ids and ``PageTable``: copies on the device."""

    ids_B: Tensor
    """int64: the new tokens."""
    num_keys_B: Tensor
    """int64: tokens of each text, the new one included."""
    pages_LBKP: Tensor
    """int32: page ids, -1 where there is none."""
    first_live_LBK: Tensor
    """int64: of the pages still there the first that every later query may look at."""
    running_LBKP: Tensor
    """fp64: ``running_norms`` of the pages that are full."""

    @classmethod
    def empty(cls, config: MPTConfig, *, batch: int, num_pages: int, device: torch.device) -> "TokenTables":
        """Room for so many texts of so many pages each."""
        shape = (config.n_layers, batch, config.kv_n_heads)
        return cls(
            ids_B=torch.zeros(batch, dtype=torch.int64, device=device),
            num_keys_B=torch.ones(batch, dtype=torch.int64, device=device),
            pages_LBKP=torch.full((*shape, num_pages), -1, dtype=torch.int32, device=device),
            first_live_LBK=torch.zeros(shape, dtype=torch.int64, device=device),
            running_LBKP=torch.zeros(*shape, num_pages, dtype=torch.float64, device=device),
        )

    @property
    def num_pages(self) -> int:
        """Pages that a text can have."""
        return self.pages_LBKP.shape[3]

    def load(self, slot: int, table: PageTable, head_dim: int) -> None:
        """Copy a table. To be done again whenever its pages change, or the one its next token falls into."""
        width, device = table.ids_LKP.shape[2], self.pages_LBKP.device
        self.pages_LBKP[:, slot, :, :width] = upload(table.ids_LKP.to(torch.int32), device)
        self.pages_LBKP[:, slot, :, width:] = -1
        self.first_live_LBK[:, slot] = upload(table.first_live_LK, device)
        self.running_LBKP[:, slot, :, :width] = running_norms(table.norms_LKP, head_dim)

    def set_tokens(self, ids: list[int], num_keys: list[int]) -> None:
        """The next pass's new tokens and lengths, in one copy that nobody waits for."""
        both_2B = upload(torch.tensor([ids, num_keys]), self.ids_B.device)
        self.ids_B.copy_(both_2B[0])
        self.num_keys_B.copy_(both_2B[1])


@dataclass(frozen=True)
class TokenResults:
    """What a pass over one token of each of B texts gives."""

    x_BC: Tensor
    """The final norm's output."""
    logits_BV: Tensor
    norms_LBK: Tensor
    """fp32: ``row_norms`` of the new keys as they are stored."""
    scores_LBH: Tensor | None
    """fp32: the most that any query can give them, if somebody evicts."""
    visited_BH: Tensor
    """int64: keys that each head looked at, over all layers."""
    mass_BH: Tensor
    """fp64: the largest certified share of a probability that was left out."""


class TokenStep:
    """The ``Past`` of one pass. The i-th row of the batch is the i-th text of the tables.

    Args:
        pool: takes in keys and values.
        tables: are only read; every layer's page for the new token must be there.
        slopes_H: fp32.
        epsilon: what may be left out of a probability.
        backend: of paged attention; chosen by device and dtype if None. With ``split`` a token is taken in by one
            kernel a layer, where that knows the storage; else by operators.
        clip: of queries, keys and values. The kernel clamps them by the way, and the model need not; see ``clips``.
    """

    def __init__(
        self,
        pool: PagePool,
        tables: TokenTables,
        slopes_H: Tensor,
        *,
        epsilon: float,
        backend: PagedBackend | None = None,
        clip: float | None = None,
    ) -> None:
        self.pool, self.tables, self.epsilon, self.backend, self.clip = pool, tables, epsilon, backend, clip
        self._first_pages: list[Tensor] = []
        self._nats: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._costs_BHP = prefix_costs(slopes_H, tables.num_keys_B, tables.num_pages)

    @cached_property
    def _places_LR(self) -> Tensor:
        """Where every layer's new rows go, as ``write_rows`` wants it."""
        pages_LBKP, last_B = self.tables.pages_LBKP, self.tables.num_keys_B - 1
        column_LBK1 = (last_B // PAGE_TOKENS)[:, None, None].expand(*pages_LBKP.shape[:3], 1)
        page_LBK = pages_LBKP.gather(3, column_LBK1)[..., 0].long()
        return (page_LBK * PAGE_TOKENS + (last_B % PAGE_TOKENS)[:, None]).flatten(1)

    @property
    def wanted(self) -> None:
        """All."""

    @property
    def num_tokens(self) -> int:
        """0: how many there are is known on the device alone, and whoever runs the pass looks to it."""
        return 0

    def positions(self) -> Tensor:
        """positions_BT of the new tokens."""
        return (self.tables.num_keys_B - 1)[:, None]

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
        """Take in a layer's new keys and values, and attend from their tokens; out_BTHD with T = 1."""
        take_in_token = self._take_in if self._has_kernel(q_BTHD) else self._take_in_by_operators
        q_BTHD, first_page_BH = take_in_token(layer, (q_BTHD, k_BTKD, v_BTKD), scale)
        return paged_attention(
            q_BTHD,
            self.pool.keys,
            self.pool.values,
            self.tables.pages_LBKP[layer],
            self.tables.num_keys_B,
            slopes_H,
            scale=scale,
            first_page_BH=first_page_BH,
            backend=self.backend,
        )

    def clips(self, x_BTC: Tensor) -> bool:
        """Whether queries, keys and values of this dtype and device are clamped here."""
        return self.clip is not None and self._has_kernel(x_BTC)

    def _has_kernel(self, q_BTHD: Tensor) -> bool:
        is_split = q_BTHD.is_cuda if self.backend is None else self.backend == "split"
        return is_split and can_take_in(q_BTHD, self.pool.keys, self.pool.values)

    def _take_in(self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values; the queries to attend with, and the first page that each head visits."""
        tables, (q_BTHD, k_BTKD, _) = self.tables, qkv
        out = TakenIn(
            queries_BTHD=None if self.clip is None else torch.empty_like(q_BTHD, memory_format=torch.contiguous_format),
            keys_BKD=torch.empty_like(k_BTKD[:, 0], dtype=torch.float32, memory_format=torch.contiguous_format),
            first_page_BH=torch.empty(q_BTHD.shape[::2], dtype=torch.int64, device=q_BTHD.device),
            nats_BH=torch.empty(q_BTHD.shape[::2], dtype=torch.float64, device=q_BTHD.device),
        )
        bounds = prefix_bounds(
            tables.running_LBKP[layer],
            self._costs_BHP,
            tables.first_live_LBK[layer],
            head_dim=q_BTHD.shape[3],
            epsilon=self.epsilon,
        )
        pools = self.pool.keys, self.pool.values
        take_in(qkv, pools, tables.pages_LBKP[layer], tables.num_keys_B, bounds, scale=scale, clip=self.clip, out=out)
        self._keys.append(out.keys_BKD)
        self._nats.append(out.nats_BH)
        self._first_pages.append(out.first_page_BH)
        return q_BTHD if out.queries_BTHD is None else out.queries_BTHD, out.first_page_BH

    def _take_in_by_operators(
        self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], scale: float
    ) -> tuple[Tensor, Tensor]:
        """``_take_in`` for any dtype, storage and device."""
        pool, places_R, (q_BTHD, k_BTKD, v_BTKD) = self.pool, self._places_LR[layer], qkv
        # Both at once: a step of small kernels takes as long as it has kernels.
        both = quantize(torch.stack([k_BTKD.flatten(0, 2), v_BTKD.flatten(0, 2)]), pool.storage)
        keys, values = (Rows(*(None if x is None else x[i] for x in both)) for i in range(2))  # type: ignore[arg-type]
        write_rows(pool.keys, keys, places_R)
        write_rows(pool.values, values, places_R)
        wide = q_BTHD.dtype if q_BTHD.dtype == torch.float64 else torch.float32
        stored_BTKD = dequantize(keys).to(wide).view_as(k_BTKD)
        self._keys.append(stored_BTKD[:, 0])
        return q_BTHD, self._plan(layer, q_BTHD.to(wide), stored_BTKD, scale)

    def _plan(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, scale: float) -> Tensor:
        """The first page that each head visits."""
        live_BK = self.tables.first_live_LBK[layer]
        live_BH = live_BK[..., None].expand(*live_BK.shape, q_BTHD.shape[2] // live_BK.shape[1]).flatten(1)
        if self.epsilon <= 0:
            first_BH, mass_BH = live_BH, torch.zeros_like(live_BH, dtype=torch.float64)
        else:
            running_BKP = self.tables.running_LBKP[layer]
            skipped_BH, mass_BH = plan_tokens(
                q_BTHD, k_BTKD, running_BKP, self._costs_BHP, scale=scale, epsilon=self.epsilon
            )
            first_BH = torch.maximum(skipped_BH, live_BH)
            # Of what was evicted is certified that it weighs at most so much.
            mass_BH = torch.where(skipped_BH < live_BH, self.epsilon, mass_BH)
        self._first_pages.append(first_BH)
        self._nats.append(mass_BH.log())
        return first_BH

    def results(self, x_BC: Tensor, logits_BV: Tensor, bounds: EvictionBounds | None) -> TokenResults:
        """To be asked for when all layers are through."""
        keys_LBKD = torch.stack(self._keys)
        first_LBH = torch.stack(self._first_pages)
        num_keys = self.tables.num_keys_B[:, None] * len(first_LBH)
        return TokenResults(
            x_BC,
            logits_BV,
            norms_LBK=row_norms(keys_LBKD),
            scores_LBH=None if bounds is None else bounds.largest_scores_of_all(keys_LBKD.transpose(1, 2)).mT,
            visited_BH=num_keys - first_LBH.sum(dim=0) * PAGE_TOKENS,
            mass_BH=torch.stack(self._nats).amax(dim=0).exp().clamp(max=self.epsilon),
        )


def run_tokens(
    model: MPT,
    pool: PagePool,
    tables: TokenTables,
    bounds: EvictionBounds | None,
    *,
    epsilon: float,
    backend: PagedBackend | None = None,
) -> TokenResults:
    """Run one new token of each text through a model; arguments are those of ``TokenStep`` and its results."""
    attn = model.config.attn_config
    # A norm of queries and keys comes after the clamp, and before they are seen here.
    clip = None if attn.qk_ln or attn.qk_gn else attn.clip_qkv
    past = TokenStep(pool, tables, model.slopes_H, epsilon=epsilon, backend=backend, clip=clip)
    x_BC = model.transformer(tables.ids_B[:, None], past)[:, 0]
    return past.results(x_BC, model.head(x_BC), bounds)
