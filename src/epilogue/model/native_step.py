"""NativeStep: a pass over a few tokens of each of some texts, the whole model in one call of the C++ extension.

Twin of ``MPT`` with a ``KVCache``, which runs whatever this does not: models that are not in fp32 on the CPU, wrapped
linear layers, ones with adapters or with codes in groups of odd sizes, and many tokens at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from epilogue.kernels.extension import native_is_available
from epilogue.kernels.model_step import (
    BlockWeights,
    LinearWeights,
    ModelWeights,
    NormWeights,
    StepBounds,
    StepModel,
    TextTable,
)
from epilogue.kernels.paged_attention import MOST_QUERIES, PAGE_TOKENS
from epilogue.kernels.quant_linear import QuantWeight
from epilogue.kernels.quant_linear.parts import takes_few_rows
from epilogue.model.blocks import Attention, Block
from epilogue.model.eviction import EvictionBounds
from epilogue.model.kv_cache import Segment
from epilogue.model.linear import CodedCopy, Linear, NarrowCopy, QuantLinear
from epilogue.model.mpt import MPT
from epilogue.model.norms import RMSNorm
from epilogue.model.page_pool import PagePool

MOST_STEP_ROWS = 16
"""New tokens of all texts together; with more PyTorch's matrix products are faster."""


class NativeStep:
    """Takes steps of few tokens with a model, over one pool.

    Weights that change later are read as they are then, but a layer that is exchanged for another is not seen.

    Args:
        model: in evaluation mode.
        pool: takes in keys and values.
        bounds: kept up with by every page that is written, if pages are to be evicted later.
        epsilon: what may be left out of a probability.
    """

    def __init__(self, model: MPT, pool: PagePool, bounds: EvictionBounds | None, *, epsilon: float) -> None:
        self.model, self.pool, self.bounds, self.epsilon = model, pool, bounds, epsilon
        self._step: StepModel | None = None
        codes = [module._buffers for module in model.modules() if isinstance(module, QuantLinear)]
        owners = [module._parameters for module in model.modules()] + codes
        self._weights = [(owner, name) for owner in owners for name in owner]
        self._hooks = [hooks for x in model.modules() for hooks in (x._forward_pre_hooks, x._forward_hooks)]
        self._attentions = [module for module in model.modules() if isinstance(module, Attention)]
        self._state: list[tuple[int, int, int]] = []

    def can_take(self, segments: Sequence[Segment]) -> bool:
        """Whether these new tokens are few enough, and the model is one that the extension runs."""
        config = self.model.config
        most_tokens = config.max_seq_len if config.has_position_embedding else None
        return (
            sum(segment.num_tokens for segment in segments) <= MOST_STEP_ROWS
            and all(segment.num_tokens <= MOST_QUERIES for segment in segments)
            and (most_tokens is None or all(segment.stop <= most_tokens for segment in segments))
            and not self.model.training
            and not any(self._hooks)  # whoever watches modules wants to see them run
            and all(attention.backend is None for attention in self._attentions)
            and self._ready() is not None
        )

    def step(self, segments: Sequence[Segment], ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Take in the new tokens; x_RC, the final norm's output, and logits_RV of all of them.

        Keys, values and what bounds them are in the pages and tables then; ``num_tokens`` is left alone.

        Args:
            segments: of different texts, for which ``can_take`` holds, with pages for their tokens.
            ids: their new tokens, one segment's after the other's.
        """
        step = self._ready()
        assert step is not None
        tables = [
            TextTable(table.ids_LKP, table.norms_LKP, table.scores_LHP, table.num_tokens, segment.num_tokens)
            for segment in segments
            for table in (segment.table,)
        ]
        results = step.run(ids, tables)
        for segment, first_page_H, mass in zip(segments, results.first_page_BH, results.omitted_mass_B, strict=True):
            if segment.reads is not None:
                older, new = segment.table.num_tokens, segment.num_tokens
                dense = len(step.weights.blocks) * (new * older + new * (new + 1) // 2)
                segment.reads.count(dense - first_page_H * (PAGE_TOKENS * new), dense, mass)
        return results.x_RC, results.logits_RV

    def _ready(self) -> StepModel | None:
        """The model as its weights are now; None if the extension does not run it."""
        state = [
            (id(x), x.data_ptr(), 0 if x.is_inference() else x._version)
            for owner, name in self._weights
            if (x := owner[name]) is not None
        ]
        if state != self._state:
            self._state, self._step = state, self._made()
        return self._step

    def _made(self) -> StepModel | None:
        weights = weights_of(self.model) if native_is_available() else None
        if weights is None or self.pool.keys.data_PWD.device.type != "cpu":
            return None
        bounds = None
        if (known := self.bounds) is not None:
            bounds = StepBounds(known.root_LHDD, known.offset_LHD, known.error_LH, known.clip)
        return StepModel(weights, self.pool.keys, self.pool.values, bounds, epsilon=self.epsilon)


class _NotCovered(Exception):
    """A part of a model that the extension does not run."""


def weights_of(model: MPT) -> ModelWeights | None:
    """A model as the extension knows it, with narrow copies where there are; None if it does not run it."""
    if any(x.device.type != "cpu" or x.dtype != torch.float32 or x.is_inference() for x in model.parameters()):
        return None
    config, transformer = model.config, model.transformer
    head = transformer.wte.weight if config.tie_word_embeddings else model.lm_head.weight
    coded_head = CodedCopy.standing_for(head, model.coded_head)
    narrow_head = NarrowCopy.standing_for(head, model.narrow_head)
    clip = config.attn_config.clip_qkv
    try:
        return ModelWeights(
            num_heads=config.n_heads,
            num_kv_heads=config.kv_n_heads,
            head_dim=config.head_dim,
            scale=config.softmax_scale,
            clip=torch.inf if clip is None else clip,
            logit_factor=1.0 if config.logit_factor is None else config.logit_factor,
            token_embedding_VC=transformer.wte.weight.detach(),
            position_embedding_SC=transformer.wpe.weight.detach() if config.has_position_embedding else None,
            slopes_H=model.slopes_H,
            blocks=tuple(_block(block) for block in transformer.blocks),
            norm_f=_norm(transformer.norm_f),
            head=LinearWeights(coded_head or (head.detach() if narrow_head is None else narrow_head)),
        )
    except _NotCovered:
        return None


def _block(block: nn.Module) -> BlockWeights:
    if type(block) is not Block or type(block.attn) is not Attention:
        raise _NotCovered
    attn, has_norms = block.attn, not isinstance(block.attn.q_ln, nn.Identity)
    return BlockWeights(
        norm_1=_norm(block.norm_1),
        norm_2=_norm(block.norm_2),
        q_norm=_norm(attn.q_ln) if has_norms else None,
        k_norm=_norm(attn.k_ln) if has_norms else None,
        Wqkv=_linear(attn.Wqkv),
        out_proj=_linear(attn.out_proj),
        up_proj=_linear(block.ffn.up_proj),
        down_proj=_linear(block.ffn.down_proj),
    )


def _linear(linear: nn.Module) -> LinearWeights:
    if not isinstance(linear, Linear | QuantLinear) or linear.adapter is not None:
        raise _NotCovered
    if type(linear) not in (Linear, QuantLinear):  # a subclass may do anything
        raise _NotCovered
    bias = None if linear.bias is None else linear.bias.detach()
    weight = _codes(linear) if isinstance(linear, QuantLinear) else _numbers(linear)
    return LinearWeights(weight, bias)


def _codes(linear: QuantLinear) -> QuantWeight:
    if linear.codes_OI.device.type != "cpu" or not takes_few_rows(linear.quant_weight):
        raise _NotCovered
    return linear.quant_weight


def _numbers(linear: Linear) -> Tensor:
    if not linear.weight.is_contiguous():
        raise _NotCovered
    narrow_FC = NarrowCopy.standing_for(linear.weight, linear.narrow)
    return linear.weight.detach() if narrow_FC is None else narrow_FC


def _norm(norm: nn.Module) -> NormWeights:
    if not isinstance(norm, nn.LayerNorm | RMSNorm):
        raise _NotCovered
    bias = norm.bias.detach() if isinstance(norm, nn.LayerNorm) and norm.bias is not None else None
    return NormWeights(norm.weight.detach(), bias, norm.eps, has_mean=isinstance(norm, nn.LayerNorm))
