"""Parameter groups and their optimizers: Muon, AdamW or Lion on matrices, AdamW or Lion on embeddings and norms."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from epilogue.train.optimizers import Lion, Muon, NarrowAdamW
from epilogue.train.recipe import OptimizerRecipe


def make_optimizers(model: nn.Module, recipe: OptimizerRecipe, *, seed: int = 0) -> list[Optimizer]:
    """Optimizers that together own every parameter that learns once. ``seed`` is that of random rounding.

    Muon (Jordan et al. 2024, as torch ships it, with updates scaled to AdamW's size after arXiv 2502.16982) takes the
    blocks' matrices; embeddings, head and norms take AdamW. Norms and biases are not decayed.
    """
    matrices, embeddings, vectors = _split(model)
    fused = all(p.device.type == "cuda" for p in model.parameters())
    decayed = embeddings if recipe.name == "muon" else matrices + embeddings
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    learning = [p for p in model.parameters() if p.requires_grad]
    is_plain = recipe.state_bits == 32 and all(p.dtype == torch.float32 for p in learning)
    optimizers: list[Optimizer]
    if recipe.name != "lion" and is_plain:
        optimizers = [AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=1e-10, fused=fused)]
    else:
        kind = Lion if recipe.name == "lion" else NarrowAdamW
        optimizers = [
            kind(
                groups,
                lr=recipe.learning_rate,
                betas=recipe.betas,
                state_bits=recipe.state_bits,
                narrow_weights=recipe.bf16_updates,
                seed=seed,
            )
        ]
    if recipe.name == "muon":
        optimizers.append(
            Muon(
                matrices,
                lr=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                momentum=recipe.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def set_learning_rate(optimizers: Sequence[Optimizer], learning_rate: float) -> None:
    """Give every group of every optimizer this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def _split(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    matrices: list[torch.Tensor] = []
    embeddings: list[torch.Tensor] = []
    vectors: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif ".blocks." in name:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    return matrices, embeddings, vectors
