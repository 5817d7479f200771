"""Parameter groups and their optimizers: Muon or AdamW on matrices, AdamW on embeddings and norms."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from epilogue.train.muon import Muon
from epilogue.train.recipe import OptimizerRecipe


def make_optimizers(model: nn.Module, recipe: OptimizerRecipe) -> list[Optimizer]:
    """Optimizers that together own every parameter once.

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
    optimizers: list[Optimizer] = [AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=1e-10, fused=fused)]
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
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif ".blocks." in name:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    return matrices, embeddings, vectors
