"""What stands before the first block and behind the last: embedding, and the loss on held-out text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from epilogue.model import MPTConfig
from epilogue.model.norms import make_norm
from epilogue.quant.activations import Activations

# Tokens whose logits are in memory at once.
_HEAD_TOKENS = 1024


@dataclass(frozen=True)
class HeldOut:
    """Text that tells how good the quantised model is: token ids of every sample, and their bytes."""

    samples: list[list[int]]
    num_bytes: int
    """UTF-8 bytes of all tokens but the first of each sample, which is given and not predicted."""


def embed(tables: Mapping[str, Tensor], ids: list[int], config: MPTConfig) -> Tensor:
    """x_TC before the first block."""
    x_TC = tables["transformer.wte.weight"][torch.tensor(ids)]
    if config.has_position_embedding:
        x_TC = x_TC + tables["transformer.wpe.weight"][: len(ids)]
    return x_TC


def measure(tensors: Mapping[str, Tensor], text: Activations, held_out: HeldOut, config: MPTConfig) -> float:
    """Bits per byte, from hidden states behind the last block and the tensors that are part of no block."""
    norm = make_norm(config, config.d_model)
    norm.load_state_dict({name: tensors[f"transformer.norm_f.{name}"] for name in norm.state_dict()})
    head_VC = tensors["transformer.wte.weight" if config.tie_word_embeddings else "lm_head.weight"]
    nats = 0.0
    for sample, ids in enumerate(held_out.samples):
        x_TC = norm(text.read(sample)[:-1])
        targets_T = torch.tensor(ids[1:])
        for x_part_TC, part_T in zip(x_TC.split(_HEAD_TOKENS), targets_T.split(_HEAD_TOKENS), strict=True):
            logits_TV = x_part_TC @ head_VC.T * (config.logit_factor or 1.0)
            nats += float(F.cross_entropy(logits_TV, part_T, reduction="none").double().sum())
    return nats / math.log(2) / held_out.num_bytes
