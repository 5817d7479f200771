"""MPT as a transformers model: forward, loss and generate over transformers' caches; arithmetic from epilogue.model."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from epilogue.hf.configuration import MPTConfig
from epilogue.hf.padding import document_starts
from epilogue.model import Attention, JoinedKeys, Transformer

_LOSS_WORDS = {"num_items_in_batch", "ignore_index", "shift_labels"}


class MPTPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model: names, first weights, loading."""

    config: MPTConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)
    _skip_keys_device_placement = ("past_key_values",)

    @classmethod
    def from_pretrained(cls, *args: Any, **settings: Any) -> Any:
        """transformers' own, with two promises of the model card kept.

        ``config.init_device = 'cuda:0'`` loads straight there; without CUDA the weights stay on the CPU, with a
        warning. And ``generate`` keeps a cache although the released files say use_cache = false.
        """
        wanted = str(getattr(settings.get("config"), "init_device", "cpu"))
        if wanted.startswith("cuda") and settings.get("device_map") is None:
            if torch.cuda.is_available():
                settings["device_map"] = {"": torch.device(wanted)}
            else:
                warnings.warn(
                    f"the config says init_device = {wanted!r} and this machine has no CUDA; the weights stay "
                    f"on the CPU",
                    stacklevel=2,
                )
        loaded = super().from_pretrained(*args, **settings)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.can_generate():
            model.generation_config.use_cache = True
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Attention):
            initialization.copy_(module.slopes_H, module.make_slopes(module.slopes_H.device))
        elif getattr(module, "writes_to_stream", False):
            std = getattr(self.config, "initializer_range", None) or 0.02
            initialization.normal_(module.weight, std=std / (2 * self.config.n_layers) ** 0.5)


class MPTModel(MPTPreTrainedModel):
    """Token ids to the final norm's output."""

    def __init__(self, config: MPTConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self._architecture = config.architecture()
        _say_what_runs(self._architecture.attn_config.attn_impl)
        for name, module in Transformer(self._architecture).named_children():
            self.add_module(name, module)
        for block in self.blocks:
            block.attn.out_proj.writes_to_stream = block.ffn.down_proj.writes_to_stream = True
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another in its place."""
        self.wte = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """The stream after the last norm.

        Args:
            input_ids: new tokens [batch, T], int64.
            past_key_values: what stands before them; None, or a cache that grows, such as DynamicCache.
            attention_mask: [batch, tokens so far]; zeros hide padding, which stands before a text or after it.
            inputs_embeds: [batch, T, d_model] in place of input_ids.
            use_cache: keep keys and values; what the config says if None.
            output_attentions: refused: the probabilities are never in memory.
            output_hidden_states: also the stream before every block and after the last norm.

        Raises:
            ValueError: both or neither of ids and embeddings, output_attentions, a mask with holes, more tokens than
                learned positions, or a cache under gradient checkpointing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions is not run here: attention never has its probabilities in memory")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            if past_key_values is not None:
                raise ValueError("checkpointing runs every block twice, which a cache does not bear; pass none")
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        x_BTC = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        num_before = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        start_BT = document_starts(attention_mask, num_new=x_BTC.shape[1], num_before=num_before)
        x_BTC = self._embedded(x_BTC, start_BT, num_before)
        past = None if past_key_values is None else JoinedKeys(_joining(past_key_values, num_before), start_BT)
        keeps_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        streams: tuple[Tensor, ...] = ()
        for block in self.blocks:
            streams += (x_BTC,) if keeps_all else ()
            x_BTC = self._run(block, x_BTC, past, start_BT)
        x_BTC = self.norm_f(x_BTC)
        return BaseModelOutputWithPast(
            last_hidden_state=x_BTC,
            past_key_values=past_key_values,
            hidden_states=(*streams, x_BTC) if keeps_all else None,
        )

    def _embedded(self, x_BTC: Tensor, start_BT: Tensor | None, num_before: int) -> Tensor:
        own = self._architecture
        if own.has_position_embedding:
            position_T = torch.arange(num_before, num_before + x_BTC.shape[1], device=x_BTC.device)
            if len(position_T) + num_before > own.max_seq_len:
                raise ValueError(
                    f"{len(position_T) + num_before} tokens, but this model has learned positions for "
                    f"{own.max_seq_len} only"
                )
            position_BT = position_T[None] if start_BT is None else position_T - start_BT.to(x_BTC.device)
            x_BTC = x_BTC + self.wpe(position_BT)
        if own.embedding_fraction != 1:
            x_BTC = x_BTC * own.embedding_fraction + x_BTC.detach() * (1 - own.embedding_fraction)
        return self.dropout(x_BTC)  # type: ignore[no-any-return]

    def _run(self, block: nn.Module, x_BTC: Tensor, past: JoinedKeys | None, start_BT: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(block.__call__, x_BTC, past, start_BT)  # type: ignore[no-any-return]
        return block(x_BTC, past, start_BT)  # type: ignore[no-any-return]


class MPTForCausalLM(MPTPreTrainedModel, GenerationMixin):
    """An MPT that writes: logits, loss, ``generate``. Tensors have MosaicML's names."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012 - read from the class

    def __init__(self, config: MPTConfig) -> None:
        super().__init__(config)
        self.transformer = MPTModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._logit_factor = config.architecture().logit_factor
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Put another in its place."""
        self.lm_head = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **loss_settings: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits, and the loss if there are labels.

        Args:
            input_ids: as MPTModel's, and so are the others that are not named here.
            past_key_values: see there.
            attention_mask: see there.
            inputs_embeds: see there.
            labels: [batch, T], the input ids themselves; -100 is left out. They are shifted here.
            use_cache: see there.
            output_attentions: see there.
            output_hidden_states: see there.
            logits_to_keep: only so many of the last tokens' logits, or those at these places; 0 for all.
            loss_settings: num_items_in_batch, ignore_index, shift_labels; the Trainer's.

        Raises:
            ValueError: as MPTModel.
            TypeError: another argument.
        """
        if unknown := set(loss_settings) - _LOSS_WORDS:
            raise TypeError(f"MPT takes no {', '.join(sorted(unknown))}; ALiBi needs no positions, only attention_mask")
        out = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BTV = self.lm_head(out.last_hidden_state[:, rows])
        if self._logit_factor is not None:
            logits_BTV = logits_BTV * self._logit_factor
        loss = None
        if labels is not None:
            loss = self.loss_function(logits_BTV, labels, vocab_size=self.config.vocab_size, **loss_settings)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits_BTV, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )


def _joining(cache: Cache, num_before: int) -> Any:
    """What JoinedKeys asks for, of a transformers cache; theirs hold [batch, heads, tokens, width]."""

    def join(layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        k_BKSD, v_BKSD = cache.update(k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2), layer)
        if k_BKSD.shape[2] != num_before + k_BTKD.shape[1]:
            raise ValueError(f"{type(cache).__name__} does not grow with the text; use DynamicCache")
        return k_BKSD.transpose(1, 2), v_BKSD.transpose(1, 2)

    return join


def _say_what_runs(attn_impl: str) -> None:
    if attn_impl != "torch" and not torch.cuda.is_available():
        warnings.warn(
            f"attn_impl = {attn_impl!r} runs on CUDA, which this machine has not; attention runs by the CPU's kernel, "
            f"with the same results",
            stacklevel=2,
        )
