"""Every parameter has one owner, and only matrices and embeddings are decayed."""

from typing import Literal

import pytest
import torch
from torch.optim import Muon

from epilogue.model import MPT, NAMED_SIZES, AttentionConfig, MPTConfig
from epilogue.train import OptimizerRecipe
from epilogue.train.optimizer import make_optimizers, set_learning_rate

CONFIGS = {
    "no biases": NAMED_SIZES["tiny"],
    "biases, positions, norms on q and k, a head of its own": MPTConfig(
        d_model=32, n_heads=4, n_layers=2, vocab_size=40, max_seq_len=16, tie_word_embeddings=False,
        attn_config=AttentionConfig(qk_ln=True),
    ),
}  # fmt: skip


def tiny_model(name: str) -> MPT:
    model = MPT(CONFIGS[name])
    model.init_weights(seed=0)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_owned_once(name: str, optimizer: Literal["muon", "adamw"]) -> None:
    model = tiny_model(name)
    groups = [group for o in make_optimizers(model, OptimizerRecipe(name=optimizer)) for group in o.param_groups]
    owned = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_what_is_decayed_and_what_is_made_orthogonal(name: str, optimizer: Literal["muon", "adamw"]) -> None:
    model = tiny_model(name)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for o in make_optimizers(model, OptimizerRecipe(name=optimizer, weight_decay=0.3)):
        for group in o.param_groups:
            for parameter in group["params"]:
                is_vector = names[id(parameter)].endswith("bias") or "norm" in names[id(parameter)]
                is_vector |= "q_ln" in names[id(parameter)] or "k_ln" in names[id(parameter)]
                assert group["weight_decay"] == (0.0 if is_vector else 0.3), names[id(parameter)]
                is_matrix = "blocks" in names[id(parameter)] and not is_vector
                assert isinstance(o, Muon) == (optimizer == "muon" and is_matrix), names[id(parameter)]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_without_a_gradient_only_decay_moves_weights(optimizer: Literal["muon", "adamw"]) -> None:
    model = tiny_model("no biases")
    optimizers = make_optimizers(model, OptimizerRecipe(name=optimizer, weight_decay=0.5))
    set_learning_rate(optimizers, 0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for o in optimizers:
        o.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim == 2 else 1)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_the_rate_reaches_every_group() -> None:
    optimizers = make_optimizers(tiny_model("no biases"), OptimizerRecipe())
    set_learning_rate(optimizers, 0.125)
    assert {group["lr"] for o in optimizers for group in o.param_groups} == {0.125}
