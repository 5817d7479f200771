"""The step in C++ (native/step.cpp): turns a model's tensors into addresses once, and a text's at every call."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from epilogue.kernels.extension import native_module
from epilogue.kernels.model_step.weights import (
    BlockWeights,
    LinearWeights,
    ModelWeights,
    NormWeights,
    StepBounds,
    TextTable,
)
from epilogue.kernels.paged_attention import MOST_QUERIES, PAGE_TOKENS, PageTensors
from epilogue.kernels.quant_linear import QuantWeight
from epilogue.kernels.quant_linear.parts import WeightParts, takes_few_rows

_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class StepResults(NamedTuple):
    """What a step gives: R new tokens of B texts, one text's after the other's."""

    x_RC: Tensor
    """fp32: the last norm's output."""
    logits_RV: Tensor
    """fp32."""
    first_page_BH: Tensor
    """int64: the first page that each head looked at, summed over the layers."""
    omitted_mass_B: Tensor
    """fp64: no query of the text gave more than this share of its probability to what was not looked at."""


class StepModel:
    """A model ready to take steps over one pool of pages; keeps all tensors that it was made of.

    Args:
        weights: the model.
        keys: the pool of keys.
        values: the pool of values.
        bounds: None if nobody evicts.
        epsilon: the share of a query's probability that a head may leave out; 0 visits everything that is there.
        instructions: an instruction set, the best one if empty.

    Raises:
        ValueError: dtypes, shapes or memory layouts that do not fit, or no such instruction set here.
    """

    def __init__(
        self,
        weights: ModelWeights,
        keys: PageTensors,
        values: PageTensors,
        bounds: StepBounds | None,
        *,
        epsilon: float,
        instructions: str = "",
    ) -> None:
        self.weights, self.epsilon, self.instructions = weights, epsilon, instructions
        self._kept = keys, values, bounds
        self._parts: list[WeightParts] = []
        module = native_module()
        assert module is not None
        module.kernels(instructions)
        self._module = module
        self._pools = keys.addresses(), values.addresses()
        self._bounds = () if bounds is None else _bounds(bounds)
        w, width = weights, weights.num_heads * weights.head_dim
        if {keys.head_dim, values.head_dim} != {w.head_dim} or w.token_embedding_VC.shape[1] != width:
            raise ValueError(f"wanted pages of width {w.head_dim} and embeddings of {width}")
        self._model = module.Model(
            (width, w.num_heads, w.num_kv_heads, w.head_dim),
            w.clip,
            w.scale,
            w.logit_factor,
            (_address(w.token_embedding_VC), _address(w.position_embedding_SC), _address(w.slopes_H)),
            [tuple(self._block(block)) for block in w.blocks],
            _norm(w.norm_f),
            self._linear(w.head),
        )

    def run(self, ids: Sequence[int], texts: Sequence[TextTable]) -> StepResults:
        """Take in new tokens of some texts: keys and values into their pages, norms and scores kept up.

        Args:
            ids: the new tokens, one text's after the other's.
            texts: different ones, with 1 to MOST_QUERIES new tokens each.

        Raises:
            ValueError: ids or tables that do not fit.
            IndexError: a page that a new token goes to is not in the pool; nothing was changed.
        """
        self._check(ids, texts)
        w, num_texts = self.weights, len(texts)
        x_RC = torch.empty(len(ids), w.token_embedding_VC.shape[1])
        logits_RV = torch.empty(len(ids), len(w.token_embedding_VC))
        first_page_BH = torch.empty(num_texts, w.num_heads, dtype=torch.int64)
        omitted_mass_B = torch.empty(num_texts, dtype=torch.float64)
        ids_R = torch.tensor(ids, dtype=torch.int64)
        pages, mass = first_page_BH.data_ptr(), omitted_mass_B.data_ptr()
        tables = [
            (_columns(text.ids_LKP), _columns(text.norms_LKP), _columns(text.scores_LHP), text.num_tokens, text.num_new,
             pages + 8 * w.num_heads * i, mass + 8 * i)
            for i, text in enumerate(texts)
        ]  # fmt: skip
        was_written = self._module.run_step(
            self._model, ids_R.data_ptr(), tables, *self._pools, self._bounds, self.epsilon, x_RC.data_ptr(),
            logits_RV.data_ptr(), torch.get_num_threads(), self.instructions,
        )  # fmt: skip
        if not was_written:
            raise IndexError("the new tokens' pages are not all in the pool")
        return StepResults(x_RC, logits_RV, first_page_BH, omitted_mass_B)

    def _block(self, block: BlockWeights) -> Iterator[tuple[Any, ...]]:
        for norm in (block.norm_1, block.norm_2, block.q_norm, block.k_norm):
            yield _norm(norm)
        for linear in (block.Wqkv, block.out_proj, block.up_proj, block.down_proj):
            yield self._linear(linear)

    def _linear(self, linear: LinearWeights) -> tuple[Any, ...]:
        if isinstance(linear.weight, QuantWeight):
            return self._codes(linear.weight, linear.bias_F)
        weight_FC = linear.weight
        if weight_FC.dtype not in _NUMBERS or not weight_FC.is_contiguous() or weight_FC.device.type != "cpu":
            raise ValueError(f"wanted dense fp32, bf16 or fp16 weights on the CPU, got {weight_FC.dtype}")
        self._module.prefer_huge_pages(weight_FC.data_ptr(), weight_FC.nbytes)
        width_out, width_in = weight_FC.shape
        return _NUMBERS[weight_FC.dtype], weight_FC.data_ptr(), _address(linear.bias_F), width_in, width_out

    def _codes(self, weight: QuantWeight, bias_F: Tensor | None) -> tuple[Any, ...]:
        if weight.codes_OI.device.type != "cpu" or not takes_few_rows(weight):
            raise ValueError(f"wanted codes on the CPU in groups of whole words, got groups of {weight.group_size}")
        _address(bias_F)
        self._module.prefer_huge_pages(weight.codes_OI.data_ptr(), weight.codes_OI.nbytes)
        self._parts.append(WeightParts(weight, bias_F))
        return self._parts[-1].addresses

    def _check(self, ids: Sequence[int], texts: Sequence[TextTable]) -> None:
        if not 0 <= min(ids) <= max(ids) < len(self.weights.token_embedding_VC):
            raise ValueError(f"an id is outside the vocabulary of {len(self.weights.token_embedding_VC)}")
        for text in texts:
            columns = min(text.ids_LKP.shape[2], text.norms_LKP.shape[2], text.scores_LHP.shape[2])
            if columns * PAGE_TOKENS < text.num_tokens + text.num_new or not 1 <= text.num_new <= MOST_QUERIES:
                raise ValueError(
                    f"wanted 1 to {MOST_QUERIES} new tokens and pages for them, got {text.num_new} behind"
                    f" {text.num_tokens} and {columns} pages"
                )
        if sum(text.num_new for text in texts) != len(ids):
            raise ValueError(f"the texts do not have {len(ids)} new tokens")


def _address(x: Tensor | None) -> int:
    if x is None:
        return 0
    if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
        raise ValueError(f"wanted dense fp32 numbers on the CPU, got {x.dtype} on {x.device}")
    return x.data_ptr()


def _norm(norm: NormWeights | None) -> tuple[Any, ...]:
    if norm is None:
        return ()
    return _address(norm.gain_C), _address(norm.bias_C), len(norm.gain_C), norm.eps, not norm.has_mean


def _bounds(bounds: StepBounds) -> tuple[Any, ...]:
    parts = (bounds.root_LHDD, bounds.offset_LHD, bounds.error_LH)
    return *map(_address, parts), bounds.clip


def _columns(x_LKP: Tensor) -> tuple[int, int, int]:
    return x_LKP.data_ptr(), x_LKP.stride(0), x_LKP.stride(1)
