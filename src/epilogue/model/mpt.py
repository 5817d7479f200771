"""The MPT decoder: embedding, pre-norm blocks of attention and feed-forward, tied or untied head.

Departures from a plain GPT: ALiBi instead of positions, one fused Wqkv that may be clamped before the split, norms on
queries and keys by choice, no biases by choice. Modules carry the names their tensors have in a checkpoint. The
arithmetic follows llm-foundry (llmfoundry/models/mpt); docs/notation.md has the axis letters.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epilogue.kernels.attention import Backend, attention
from epilogue.kernels.few_row_linear import few_row_linear
from epilogue.kernels.linear_cross_entropy import linear_cross_entropy
from epilogue.kernels.quant_linear import NO_ENDING, Ending, quant_linear
from epilogue.model.alibi import alibi_slopes
from epilogue.model.config import MPTConfig
from epilogue.model.exchange import HeadExchange
from epilogue.model.linear import CodedCopy, Linear, NarrowCopy, end_linear, make_linear
from epilogue.model.norms import make_norm
from epilogue.model.past import Lookback, Past
from epilogue.model.reach import page_norms, plan_reach
from epilogue.model.recompute import BlockParts, Recompute, run_block
from epilogue.model.stream import Stream, lets_terms_wait


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
    ) -> Tensor:
        """Attend from every token to itself and all before it, or all of its document."""
        return end_linear(self.out_proj, self.mix(x_BTC, cache, document_start_BT), ending)

    def mix(self, x_BTC: Tensor, cache: Lookback | None = None, document_start_BT: Tensor | None = None) -> Tensor:
        """What the heads have gathered, as x_BTC, before it is projected."""
        q_BTHD, k_BTKD, v_BTKD = self._project(x_BTC, clips=cache is None or not cache.clips(x_BTC))
        if cache is not None:
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
        self, x_BTC: Tensor | Stream, cache: Lookback | None, document_start_BT: Tensor | None = None
    ) -> Tensor | Stream:
        """One layer. A stream for a stream, which never learns, and a tensor for a tensor."""
        if isinstance(x_BTC, Stream):
            return self._carry(x_BTC, cache, document_start_BT)
        if self.recompute is not None and cache is None and torch.is_grad_enabled():
            return run_block(x_BTC, self._parts(document_start_BT), self.recompute)  # type: ignore[no-any-return]
        if self.training:
            return self._feed(x_BTC + self.dropout(self.attn(self.norm_1(x_BTC), cache, document_start_BT)))
        return self._carry(Stream(x_BTC), cache, document_start_BT).sum_BTC

    def _carry(self, stream: Stream, cache: Lookback | None, document_start_BT: Tensor | None) -> Stream:
        stream, normed_BTC = stream.normed(self.norm_1)
        ending = stream.ending_of(self.attn.out_proj)
        stream = stream.plus(self.attn(normed_BTC, cache, document_start_BT, ending=ending), ending)
        stream, normed_BTC = stream.normed(self.norm_2)
        ending = stream.ending_of(self.ffn.down_proj)
        return stream.plus(self.ffn(normed_BTC, ending=ending), ending)

    def _feed(self, x_BTC: Tensor) -> Tensor:
        return x_BTC + self.dropout(self.ffn(self.norm_2(x_BTC)))  # type: ignore[no-any-return]

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


class Transformer(nn.Module):
    """Token ids to the final norm's output."""

    def __init__(self, config: MPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        if config.has_position_embedding:
            self.wpe = nn.Embedding(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.emb_pdrop)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm_f = make_norm(config, config.d_model)

    def forward(self, ids_BT: Tensor, cache: Past | None = None, document_start_BT: Tensor | None = None) -> Tensor:
        """x_BTC for new tokens; the cache, if any, is behind them and takes them in."""
        if cache is not None and document_start_BT is not None:
            raise ValueError("documents are packed for training, without a cache: pass one of the two")
        x_BTC = self.wte(ids_BT)
        if self.config.has_position_embedding:
            positions_BT = self._positions(ids_BT, cache)
            # A document's positions are those it would have alone.
            x_BTC = x_BTC + self.wpe(positions_BT if document_start_BT is None else positions_BT - document_start_BT)
        if self.config.embedding_fraction != 1:
            share = self.config.embedding_fraction
            x_BTC = x_BTC * share + x_BTC.detach() * (1 - share)
        x_BTC = self.dropout(x_BTC)
        stream = Stream(x_BTC) if lets_terms_wait(x_BTC) and not self.training else x_BTC
        for block in self.blocks:
            stream = block(stream, cache, document_start_BT)
        return stream.normed(self.norm_f)[1] if isinstance(stream, Stream) else self.norm_f(stream)

    def _positions(self, ids_BT: Tensor, cache: Past | None) -> Tensor:
        positions_BT = torch.arange(ids_BT.shape[1])[None] if cache is None else cache.positions()
        num_tokens = ids_BT.shape[1] if cache is None else cache.num_tokens
        if num_tokens > self.config.max_seq_len:
            raise ValueError(
                f"{num_tokens} tokens, but this model has learned positions for {self.config.max_seq_len} only"
            )
        return positions_BT.to(ids_BT.device)


class MPT(nn.Module):
    """A causal language model of the MPT family.

    ``forward`` gives logits, ``loss`` the mean cross-entropy; both take ids alone, or ids behind a ``KVCache``. On
    the CPU and on CUDA the memory of attention grows with the number of tokens, never with its square.
    """

    def __init__(self, config: MPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.narrow_head: NarrowCopy | None = None
        self.coded_head: CodedCopy | None = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.transformer.wte.weight.dtype

    @property
    def _head_weight(self) -> Tensor:
        return self.transformer.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight

    @property
    def slopes_H(self) -> Tensor:
        """fp32 slopes, the same in every layer; zeros without ALiBi."""
        first = self.transformer.blocks[0]
        assert isinstance(first, Block)
        return first.attn.slopes_H

    def set_attention_backend(self, backend: Backend | None) -> None:
        """Run attention by one backend everywhere; None chooses by device and shape."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def set_epsilon(self, epsilon: float) -> None:
        """Let attention without a cache leave out keys that together hold at most this share of a probability."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.epsilon = epsilon

    def set_alibi_bias_max(self, alibi_bias_max: float) -> None:
        """Change the slopes of all heads, and the config that says so.

        Raises:
            ValueError: a model without ALiBi.
        """
        if not self.config.attn_config.alibi:
            raise ValueError("this model has learned positions, and no ALiBi whose alibi_bias_max could be set")
        changed = replace(self.config.attn_config, alibi_bias_max=alibi_bias_max)
        self.config = self.transformer.config = replace(self.config, attn_config=changed)
        for module in self.modules():
            if isinstance(module, Attention):
                module.set_alibi_bias_max(alibi_bias_max)

    def set_recompute(self, recompute: Recompute | None) -> None:
        """Train with less memory: make every block's activations again on the way back, but for what this keeps."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = recompute

    def keep_copies(self, *, coded_head: bool | None = None) -> None:
        """Keep fp32 weights that are bf16 or fp16 numbers as those too, for few tokens on a CPU: half the memory more.

        Weights that change later are read as they are.

        Args:
            coded_head: let ``head`` multiply by 8-bit codes instead, which are not quite the same numbers
                (docs/numerics.md): a quarter of the head's memory more. None: where the other layers are quantised.
        """
        wants_codes = self.config.quantization is not None if coded_head is None else coded_head
        self.coded_head = CodedCopy.of(self._head_weight) if wants_codes else None
        for module in self.modules():
            if isinstance(module, Linear):
                module.narrow = NarrowCopy.of(module.weight)
        self.narrow_head = NarrowCopy.of(self._head_weight) if self.coded_head is None else None

    def head(self, x_BTC: Tensor) -> Tensor:
        """logits_BTV of the final norm's output; vocab_size numbers a token, so ask for the tokens you need."""
        weight = self._head_weight
        codes = CodedCopy.standing_for(weight, self.coded_head)
        if codes is None:
            logits_BTV = few_row_linear(x_BTC, weight, narrow_FC=NarrowCopy.standing_for(weight, self.narrow_head))
        else:
            logits_BTV = quant_linear(x_BTC.flatten(0, -2), codes).view(*x_BTC.shape[:-1], len(weight))
        factor = self.config.logit_factor
        return logits_BTV if factor is None else logits_BTV * factor

    def forward(
        self,
        ids_BT: Tensor,
        cache: Past | None = None,
        *,
        last_only: bool = False,
        document_start_BT: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits.

        Args:
            ids_BT: new token ids, int64.
            cache: what stands before them; takes them in. The same batch, dtype and device as the model.
            last_only: only the last token's logits, as [B, 1, V]; the way to read a book.
            document_start_BT: for several documents packed into a sequence, without a cache: for every token the
                position of its document's first one, int64. No document sees another.

        Returns:
            logits_BTV in the model's dtype.

        Raises:
            ValueError: more tokens than learned positions or than the cache has room for, or documents and a cache.
        """
        x_BTC = self.transformer(ids_BT, cache, document_start_BT)
        return self.head(x_BTC[:, -1:] if last_only else x_BTC)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, document_start_BT: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the targets in nats, as an fp32 scalar; logits are never all in memory.

        ``document_start_BT`` is that of ``forward``; a target of -100 counts for nothing.
        """
        x_BTC = self.transformer(ids_BT, None, document_start_BT)
        return linear_cross_entropy(
            x_BTC.flatten(0, 1), self._head_weight, targets_BT.flatten(), factor=self.config.logit_factor or 1.0
        )

    @torch.no_grad()
    def init_weights(self, *, std: float = 0.02, seed: int = 0) -> None:
        """Draw fresh weights: normal with this deviation, projections into the stream smaller by sqrt(2 * layers)."""
        for parameter, (_, weight) in zip(self.parameters(), self.fresh_weights(std=std, seed=seed), strict=True):
            parameter.copy_(weight)

    def fresh_weights(self, *, std: float = 0.02, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
        """What ``init_weights`` draws, by name and one after the other, where the model may have no memory or parts.

        They come on the model's device, or on the CPU for a model on the meta device; the numbers are that device's.
        """
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        generator = torch.Generator(device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            weight = torch.ones(parameter.shape, dtype=parameter.dtype, device=device)
            if name.endswith("bias"):
                weight.zero_()
            elif parameter.ndim >= 2:
                into_stream = name.endswith(("out_proj.weight", "down_proj.weight"))
                scale = std / math.sqrt(2 * self.config.n_layers) if into_stream else std
                weight.normal_(std=scale, generator=generator)
            yield name, weight
