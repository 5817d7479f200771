"""Lion and AdamW against plain ones, 8 bits against 32, bf16 against fp32, and their states saved and loaded."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from epilogue.train.optimizers import Elementwise, Lion, NarrowAdamW
from epilogue.train.optimizers.rounding import join

KINDS: dict[str, type[Elementwise]] = {"lion": Lion, "adamw": NarrowAdamW}
RATES = {"lion": 1e-2, "adamw": 2e-2}


def weights(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((24, 300), (40,))]


def give_gradients(parameters: list[Tensor], step: int) -> None:
    """Those of a noisy bowl around 0.5, drawn anew for each step."""
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = (p.detach().float() - 0.5 + 0.3 * torch.randn(p.shape, generator=generator)).to(p.dtype)


def run(optimizer: Optimizer, parameters: list[Tensor], steps: range) -> None:
    for step in steps:
        give_gradients(parameters, step)
        optimizer.step()


def distance(parameters: list[Tensor]) -> float:
    return torch.cat([(p.detach().float() - 0.5).flatten() for p in parameters]).square().mean().sqrt().item()


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_lion_is_the_paper_s(weight_decay: float) -> None:
    parameters = weights()
    plain = [p.detach().double().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in plain]
    optimizer = Lion(parameters, lr=0.01, betas=(0.9, 0.99), weight_decay=weight_decay)
    for step in range(20):
        give_gradients(parameters, step)
        for p, w, m in zip(parameters, plain, momenta, strict=True):
            assert p.grad is not None
            gradient = p.grad.double()
            update = torch.sign(0.9 * m + 0.1 * gradient)
            w -= 0.01 * (update + weight_decay * w)
            m += 0.01 * (gradient - m)
        optimizer.step()
    for p, w in zip(parameters, plain, strict=True):
        # A sign may turn where mixture and rounding meet.
        assert ((p.detach() - w).abs() < 1e-4).float().mean() > 0.999


def test_adamw_is_pytorch_s() -> None:
    mine, theirs = weights(), weights()
    settings: dict[str, Any] = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.1, "eps": 1e-10}
    run(NarrowAdamW(mine, **settings), mine, range(20))
    run(torch.optim.AdamW(theirs, **settings), theirs, range(20))
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_eight_bits_go_where_32_go(name: str) -> None:
    ends = []
    for state_bits in (32, 8):
        parameters = weights()
        start = distance(parameters)
        optimizer = KINDS[name](parameters, lr=RATES[name], weight_decay=0.1, state_bits=state_bits)
        run(optimizer, parameters, range(60))
        ends.append(torch.cat([p.detach().flatten() for p in parameters]))
        moved = (ends[-1] - torch.cat([p.detach().flatten() for p in weights()])).norm()
    assert (ends[1] - ends[0]).norm() < 0.06 * moved
    assert distance(parameters) < 0.8 * start


@pytest.mark.parametrize("name", KINDS)
def test_eight_bits_take_the_room_they_should(name: str) -> None:
    parameters = weights()
    optimizer = KINDS[name](parameters, state_bits=8)
    run(optimizer, parameters, range(1))
    matrix, vector = (optimizer.state[p] for p in parameters)
    num_bytes = sum(value.nbytes for key, value in matrix.items() if key != "step")
    assert num_bytes == len(KINDS[name].moments) * 24 * (300 + 2 * 4)
    assert vector["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("narrow", ["residual", "stochastic"])
@pytest.mark.parametrize("state_bits", [32, 8])
def test_a_state_that_was_saved_goes_on_to_the_bit(name: str, narrow: str, state_bits: int, tmp_path: Any) -> None:
    settings: dict[str, Any] = {"lr": 1e-3, "state_bits": state_bits, "narrow_weights": narrow, "seed": 3}
    whole, cut = weights(torch.bfloat16), weights(torch.bfloat16)
    run(KINDS[name](whole, **settings), whole, range(7))
    first = KINDS[name](cut, **settings)
    run(first, cut, range(4))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = KINDS[name](cut, **settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for p in cut:
        assert first.state[p].keys() == second.state[p].keys()
        for key, value in first.state[p].items():
            assert value.dtype == second.state[p][key].dtype, key
            assert torch.equal(value, second.state[p][key]), key
    run(second, cut, range(4, 7))
    assert all(torch.equal(p, q) for p, q in zip(whole, cut, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_bf16_with_its_lower_half_is_fp32(name: str) -> None:
    wide = [p.detach().bfloat16().float().requires_grad_() for p in weights()]
    narrow = weights(torch.bfloat16)
    one, other = KINDS[name](wide, lr=1e-4), KINDS[name](narrow, lr=1e-4, narrow_weights="residual")
    for step in range(50):
        give_gradients(wide, step)
        for p, q in zip(wide, narrow, strict=True):
            assert p.grad is not None
            p.grad = p.grad.bfloat16().float()
            q.grad = p.grad.bfloat16()
        one.step()
        other.step()
    for p, q in zip(wide, narrow, strict=True):
        assert torch.equal(join(q.detach(), other.state[q]["lower_half"]), p.detach())


@pytest.mark.parametrize("name", KINDS)
def test_small_steps_are_not_lost(name: str) -> None:
    """Steps of a hundredth of a bf16 weight's last bit: rounding to nearest would leave everything as it was."""
    moved = {}
    for narrow in ("residual", "stochastic"):
        weight = torch.full((64, 256), 1.0, dtype=torch.bfloat16, requires_grad=True)
        optimizer = KINDS[name]([weight], lr=2**-8 / 100, betas=(0.0, 0.0), narrow_weights=narrow)
        for _ in range(300):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[narrow] = 1 - weight.detach().float().mean().item()
    wanted = 300 * 2**-8 / 100
    # To the nearest, all weights are alike; at random they differ, and the mean is right.
    assert abs(moved["residual"] - wanted) < 2**-8
    assert abs(moved["stochastic"] - wanted) < 0.02 * wanted


def test_without_a_gradient_nothing_moves() -> None:
    parameters = weights()
    before = [p.detach().clone() for p in parameters]
    Lion(parameters, lr=1.0).step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 or bfloat16, got torch\.float16"):
        Lion([torch.zeros(2, dtype=torch.float16, requires_grad=True)])
    with pytest.raises(ValueError, match="takes no closure"):
        Lion(weights()).step(lambda: None)
