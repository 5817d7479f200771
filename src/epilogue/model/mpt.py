"""The MPT decoder: embedding, pre-norm blocks of attention and feed-forward, tied or untied head.

Departures from a plain GPT: ALiBi instead of positions, one fused Wqkv that may be clamped before the split, norms on
queries and keys by choice, no biases by choice. Modules carry the names their tensors have in a checkpoint. The
arithmetic follows llm-foundry (llmfoundry/models/mpt); docs/notation.md has the axis letters.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from epilogue.kernels.attention import Backend
from epilogue.kernels.few_row_linear import few_row_linear
from epilogue.kernels.linear_cross_entropy import linear_cross_entropy
from epilogue.kernels.quant_linear import quant_linear
from epilogue.model.blocks import Attention, Block
from epilogue.model.config import MPTConfig
from epilogue.model.linear import CodedCopy, Linear, NarrowCopy
from epilogue.model.norms import make_norm
from epilogue.model.past import Past
from epilogue.model.recompute import Recompute
from epilogue.model.stream import Stream, lets_terms_wait


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
        """x_BTC for new tokens; the cache, if any, is behind them and takes them in, and may want some of them only."""
        if cache is not None and document_start_BT is not None:
            raise ValueError("documents are packed for training, without a cache: pass one of the two")
        x_BTC: Tensor = self.wte(ids_BT)
        if self.config.has_position_embedding:
            positions_BT = self._positions(ids_BT, cache)
            # A document's positions are those it would have alone.
            x_BTC = x_BTC + self.wpe(positions_BT if document_start_BT is None else positions_BT - document_start_BT)
        if self.config.embedding_fraction != 1:
            share = self.config.embedding_fraction
            x_BTC = x_BTC * share + x_BTC.detach() * (1 - share)
        x_BTC = self.dropout(x_BTC)
        stream = Stream(x_BTC) if lets_terms_wait(x_BTC) and not self.training else x_BTC
        *earlier, last = self.blocks
        for block in earlier:
            stream = block(stream, cache, document_start_BT)
        wanted = None if cache is None else cache.wanted
        stream = last(stream, cache, document_start_BT, wanted)
        if wanted is not None and not wanted:
            return x_BTC[:, :0]
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
                Tokens that it does not want have no logits.
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
