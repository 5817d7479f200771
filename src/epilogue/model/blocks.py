"""A layer of the MPT decoder: attention and feed-forward, each behind its norm and added to the stream.

Modules carry the names their tensors have in a checkpoint. The arithmetic follows llm-foundry (llmfoundry/models/mpt).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.kernels.attention import Backend, attention
from epilogue.kernels.quant_linear import NO_ENDING, Ending
from epilogue.model.alibi import alibi_slopes
from epilogue.model.config import MPTConfig
from epilogue.model.exchange import HeadExchange
from epilogue.model.linear import end_linear, make_linear
from epilogue.model.norms import make_norm
from epilogue.model.past import Lookback
from epilogue.model.reach import page_norms, plan_reach
from epilogue.model.recompute import BlockParts, Recompute, run_block
from epilogue.model.stream import Stream, picked


class Attention(nn.Module):
    """Causal self-attention over one layer's slice of the cache."""

    slopes_H: Tensor

    def __init__(self, config: MPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.kv_n_heads, self.head_dim = config.n_heads, config.kv_n_heads, config.head_dim
        self.clip_qkv = config.attn_config.clip_qkv
        self.scale = config.softmax_scale
        self.backend: Backend | None = None
        self.epsilon = 0.0
        self.exchange = HeadExchange()
        kind, width = config.quantization, config.d_model
        self.Wqkv = make_linear(width, config.qkv_width, quantization=kind, bias=config.has_qkv_bias)
        self.out_proj = make_linear(width, width, quantization=kind, bias=not config.no_bias)
        self.norms_over_heads = config.attn_config.qk_ln
        if config.attn_config.qk_ln or config.attn_config.qk_gn:
            per_head = config.attn_config.qk_gn
            self.q_ln = make_norm(config, config.head_dim if per_head else config.d_model)
            self.k_ln = make_norm(config, config.head_dim * (1 if per_head else config.kv_n_heads))
        else:
            self.q_ln, self.k_ln = nn.Identity(), nn.Identity()
        self._alibi_bias_max = config.attn_config.alibi_bias_max if config.attn_config.alibi else None
        self.register_buffer("slopes_H", self.make_slopes(torch.device("cpu")), persistent=False)

    def set_alibi_bias_max(self, alibi_bias_max: float) -> None:
        """Change the slopes, in place: what holds them sees it."""
        self._alibi_bias_max = alibi_bias_max
        self.slopes_H.copy_(self.make_slopes(self.slopes_H.device))

    def make_slopes(self, device: torch.device) -> Tensor:
        """slopes_H anew; they are no part of a checkpoint."""
        with torch.device("cpu"):
            if self._alibi_bias_max is None:
                return torch.zeros(self.n_heads, dtype=torch.float32).to(device)
            return alibi_slopes(self.n_heads, self._alibi_bias_max).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Attention":
        """Follow the weights to their device but never to their dtype: a bias in bf16 is not ALiBi."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.slopes_H = self.make_slopes(self.slopes_H.device)
        return self

    def forward(
        self,
        x_BTC: Tensor,
        cache: Lookback | None,
        document_start_BT: Tensor | None = None,
        *,
        ending: Ending = NO_ENDING,
        wanted: Sequence[slice] | None = None,
    ) -> Tensor:
        """Attend from every token, or those that are wanted, to itself and all before it, or all of its document."""
        return end_linear(self.out_proj, self.mix(x_BTC, cache, document_start_BT, wanted=wanted), ending)

    def mix(
        self,
        x_BTC: Tensor,
        cache: Lookback | None = None,
        document_start_BT: Tensor | None = None,
        *,
        wanted: Sequence[slice] | None = None,
    ) -> Tensor:
        """What the heads have gathered, as x_BTC, before it is projected."""
        q_BTHD, k_BTKD, v_BTKD = self._project(x_BTC, clips=cache is None or not cache.clips(x_BTC))
        if cache is not None:
            q_BTHD = picked(q_BTHD, wanted)
            out_BTHD = cache.attend(
                self.layer, q_BTHD, k_BTKD, v_BTKD, self.slopes_H, scale=self.scale, backend=self.backend
            )
        else:
            heads = self.exchange.to_heads(q_BTHD, k_BTKD, v_BTKD)
            out_BTHD = self.exchange.to_tokens(self._attend(*heads, document_start_BT))
        return out_BTHD.flatten(2)

    def _attend(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, document_start_BT: Tensor | None) -> Tensor:
        """out_BTHD of whole sequences, without a cache."""
        slopes_H = self.slopes_H[self.exchange.heads]
        first_key_HN = None
        if self.epsilon > 0:
            plan = plan_reach(
                q_BTHD, k_BTKD, page_norms(k_BTKD.detach()), slopes_H,
                scale=self.scale, epsilon=self.epsilon, num_keys=k_BTKD.shape[1],
            )  # fmt: skip
            first_key_HN = plan.first_key_HN
        return attention(
            q_BTHD, k_BTKD, v_BTKD, slopes_H, scale=self.scale,
            first_key_HN=first_key_HN, document_start_BT=document_start_BT, backend=self.backend,
        )  # fmt: skip

    def _project(self, x_BTC: Tensor, *, clips: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Queries q_BTHD, keys k_BTKD and values v_BTKD, clamped (unless that comes later) and normed as configured."""
        qkv = end_linear(self.Wqkv, x_BTC, Ending(clip=self.clip_qkv if clips else None))
        kv_width = self.kv_n_heads * self.head_dim
        q, k, v = qkv.split([self.n_heads * self.head_dim, kv_width, kv_width], dim=-1)
        if self.norms_over_heads:
            q, k = self.q_ln(q), self.k_ln(k)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        if not self.norms_over_heads:
            q, k = self.q_ln(q), self.k_ln(k)
        # Under autocast the norms answer in fp32 and the projection does not.
        return q.to(v.dtype), k.to(v.dtype), v


class FeedForward(nn.Module):
    """Up, exact erf GELU, down."""

    def __init__(self, config: MPTConfig) -> None:
        super().__init__()
        kind, bias = config.quantization, not config.no_bias
        self.up_proj = make_linear(config.d_model, config.ffn_width, quantization=kind, bias=bias)
        self.down_proj = make_linear(config.ffn_width, config.d_model, quantization=kind, bias=bias)

    def forward(self, x_BTC: Tensor, *, ending: Ending = NO_ENDING) -> Tensor:
        """Transform every token by itself."""
        return end_linear(self.down_proj, self.widen(x_BTC), ending)

    def widen(self, x_BTC: Tensor) -> Tensor:
        """x_BTF, what comes before the way down."""
        return F.gelu(self.up_proj(x_BTC))


class Block(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the stream."""

    def __init__(self, config: MPTConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = make_norm(config, config.d_model)
        self.attn = Attention(config, layer)
        self.norm_2 = make_norm(config, config.d_model)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.resid_pdrop)
        self.recompute: Recompute | None = None

    def forward(
        self,
        x_BTC: Tensor | Stream,
        cache: Lookback | None,
        document_start_BT: Tensor | None = None,
        wanted: Sequence[slice] | None = None,
    ) -> Tensor | Stream:
        """One layer. A stream for a stream, which never learns, and a tensor for a tensor.

        Of tokens that are not among the ``wanted`` the cache gets keys and values, and that is all.
        """
        if isinstance(x_BTC, Stream):
            return self._carry(x_BTC, cache, document_start_BT, wanted)
        if self.recompute is not None and cache is None and torch.is_grad_enabled():
            behind_BTC: Tensor = run_block(x_BTC, self._parts(document_start_BT), self.recompute)
            return behind_BTC
        if self.training and wanted is None:
            return self._feed(x_BTC + self.dropout(self.attn(self.norm_1(x_BTC), cache, document_start_BT)))
        return self._carry(Stream(x_BTC), cache, document_start_BT, wanted).sum_BTC

    def _carry(
        self,
        stream: Stream,
        cache: Lookback | None,
        document_start_BT: Tensor | None,
        wanted: Sequence[slice] | None,
    ) -> Stream:
        stream, normed_BTC = stream.normed(self.norm_1)
        stream = Stream(picked(stream.x_BTC, wanted))
        if wanted is not None and not wanted:
            self.attn.mix(normed_BTC, cache, wanted=wanted)
            return stream
        ending = stream.ending_of(self.attn.out_proj)
        stream = stream.plus(self.attn(normed_BTC, cache, document_start_BT, ending=ending, wanted=wanted), ending)
        stream, normed_BTC = stream.normed(self.norm_2)
        ending = stream.ending_of(self.ffn.down_proj)
        return stream.plus(self.ffn(normed_BTC, ending=ending), ending)

    def _feed(self, x_BTC: Tensor) -> Tensor:
        fed_BTC: Tensor = self.dropout(self.ffn(self.norm_2(x_BTC)))
        return x_BTC + fed_BTC

    def _parts(self, document_start_BT: Tensor | None) -> BlockParts:
        exchange = self.attn.exchange
        return BlockParts(
            project=lambda x_BTC: exchange.to_heads(*self.attn._project(self.norm_1(x_BTC))),
            attend=lambda q, k, v: self.attn._attend(q, k, v, document_start_BT),
            join=lambda x_BTC, o_BTHD: x_BTC + self.dropout(self.attn.out_proj(exchange.to_tokens(o_BTHD).flatten(2))),
            feed=self._feed,
            weights=[weight for weight in self.parameters() if weight.requires_grad],
            draws=self.training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules()),
        )
