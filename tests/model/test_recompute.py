"""Whatever is made again on the way back, loss and gradients are those of a block that keeps everything."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from epilogue.model import MPT, AttentionConfig, MPTConfig, Recompute
from epilogue.model.exchange import HeadExchange
from epilogue.model.recompute import BlockParts, run_block

CONFIG = MPTConfig(
    d_model=32, n_heads=4, n_layers=2, max_seq_len=512, vocab_size=61, no_bias=True,
    attn_config=AttentionConfig(alibi=True, clip_qkv=1.0),
)  # fmt: skip
CONFIGS = {
    "clamped": CONFIG,
    "shared keys, norms, biases": replace(
        CONFIG,
        no_bias=False,
        attn_config=AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2, qk_ln=True),
    ),
    "positions": replace(CONFIG, attn_config=AttentionConfig(alibi=False)),
}
WAYS = [Recompute(), Recompute(tile_tokens=100), Recompute(keeps_attention=True, tile_tokens=64)]


def fresh(config: MPTConfig, dtype: torch.dtype = torch.float64) -> MPT:
    model = MPT(config)
    model.init_weights(std=0.3, seed=1)
    return model.to(dtype)


def loss_and_gradients(model: MPT, how: Recompute | None, documents: Tensor | None = None) -> dict[str, Tensor]:
    ids = torch.randint(61, (2, 301), generator=torch.Generator().manual_seed(0))
    model.set_recompute(how)
    model.zero_grad()
    torch.manual_seed(3)
    loss = model.loss(ids[:, :-1], ids[:, 1:], documents)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss.detach()}


def assert_alike(got: dict[str, Tensor], wanted: dict[str, Tensor], share: float) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert got[name].dtype == gradient.dtype
        assert (got[name] - gradient).norm() <= share * gradient.norm(), name


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_the_same(name: str, how: Recompute) -> None:
    model = fresh(CONFIGS[name])
    assert_alike(loss_and_gradients(model, how), loss_and_gradients(model, None), 1e-10)


@given(st.integers(1, 400), st.booleans())
def test_any_tile_will_do(tile_tokens: int, keeps: bool) -> None:
    model = fresh(replace(CONFIG, n_layers=1))
    how = Recompute(tile_tokens=tile_tokens, keeps_attention=keeps)
    assert_alike(loss_and_gradients(model, how), loss_and_gradients(model, None), 1e-10)


@pytest.mark.parametrize("how", WAYS)
def test_with_reach_documents_and_frozen_weights(how: Recompute) -> None:
    model = fresh(CONFIG)
    model.set_epsilon(1e-9)
    model.transformer.wte.requires_grad_(False)
    model.transformer.blocks[0].attn.requires_grad_(False)
    starts_BT = torch.tensor([0] * 120 + [120] * 180).expand(2, -1).contiguous()
    wanted = loss_and_gradients(model, None, starts_BT)
    assert_alike(loss_and_gradients(model, how, starts_BT), wanted, 1e-10)


@pytest.mark.parametrize("how", [Recompute(), Recompute(keeps_attention=True)])
def test_dropout_drops_the_same_again(how: Recompute) -> None:
    model = fresh(replace(CONFIG, resid_pdrop=0.3, emb_pdrop=0.1)).train()
    assert_alike(loss_and_gradients(model, how), loss_and_gradients(model, None), 1e-10)


def test_tiles_drop_the_same_again() -> None:
    """Cut into tiles, other numbers are drawn; but the same ones there and back: the gradient is that of the loss."""
    model = fresh(replace(CONFIG, resid_pdrop=0.3)).train()
    how = Recompute(tile_tokens=64)
    gradients = loss_and_gradients(model, how)
    weight, step = model.transformer.blocks[0].ffn.up_proj.weight, 1e-5
    direction = gradients["transformer.blocks.0.ffn.up_proj.weight"]
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        losses.append(loss_and_gradients(model, how)["loss"])
        with torch.no_grad():
            weight -= sign * step * direction
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), direction.square().sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("how", WAYS)
def test_in_bf16_and_under_autocast(how: Recompute) -> None:
    narrow = fresh(CONFIG, torch.bfloat16)
    assert_alike(loss_and_gradients(narrow, how), loss_and_gradients(narrow, None), 0.03)
    wide = fresh(CONFIG, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_alike(loss_and_gradients(wide, how), loss_and_gradients(wide, None), 0.03)


@pytest.mark.parametrize(("how", "attends"), [(Recompute(), 2), (Recompute(keeps_attention=True), 1)])
def test_what_runs_how_often(how: Recompute, attends: int) -> None:
    runs: list[str] = []
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        runs.append("attend")
        return (q * k).tanh() * v

    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        runs.append("project")
        return tuple((x @ weight).repeat(1, 1, 3).chunk(3, dim=-1))

    def feed(x: Tensor) -> Tensor:
        runs.append("feed")
        return x.exp()

    x = torch.rand(1, 6, 4, dtype=torch.float64, requires_grad=True)
    parts = BlockParts(project, attend, torch.add, feed, [weight], draws=False)
    run_block(x, parts, replace(how, tile_tokens=2)).sum().backward()
    assert [runs.count(name) for name in ("project", "attend", "feed")] == [2, attends, 6]


def saved_between(how: Recompute | None) -> int:
    """Numbers that one block of 32 wide, 128 inside, holds between the ways forward and back, a token."""
    model = fresh(replace(CONFIG, n_layers=1))
    model.set_recompute(how)
    x_BTC = torch.randn(1, 256, 32, dtype=torch.float64, requires_grad=True)
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 8
        return x

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.transformer.blocks[0](x_BTC, None)
    del out
    return sum(size for pointer, size in held.items() if pointer not in weights) // 256


def test_only_the_stream_is_kept() -> None:
    assert saved_between(Recompute()) == 32
    assert saved_between(None) > 10 * 32


class Dealt(HeadExchange):
    """With nobody: heads in another order, in memory of their own."""

    def __init__(self) -> None:
        self.heads = [2, 0, 3, 1]

    def to_heads(self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = torch.stack([q_BTHD, k_BTKD, v_BTKD])[:, :, :, self.heads]
        return q, k, v

    def to_tokens(self, out_BTHD: Tensor) -> Tensor:
        return out_BTHD[:, :, [1, 3, 0, 2]]


@pytest.mark.parametrize("how", [None, *WAYS])
def test_heads_may_be_computed_elsewhere(how: Recompute | None) -> None:
    model = fresh(CONFIG)
    wanted = loss_and_gradients(model, None)
    for block in model.transformer.blocks:
        block.attn.exchange = Dealt()
    assert_alike(loss_and_gradients(model, how), wanted, 1e-10)


@pytest.mark.parametrize("exchange", [HeadExchange(), Dealt()])
def test_kept_attention_keeps_no_queries_keys_or_values(exchange: HeadExchange) -> None:
    model = fresh(replace(CONFIG, n_layers=1))
    model.set_recompute(Recompute(keeps_attention=True))
    model.transformer.blocks[0].attn.exchange = exchange
    seen = []
    attend = model.transformer.blocks[0].attn._attend

    def watched(*args: Tensor) -> Tensor:
        seen.extend(StorageWeakRef(x.untyped_storage()) for x in args[:3])
        return attend(*args)

    model.transformer.blocks[0].attn._attend = watched  # type: ignore[method-assign]
    out = model.transformer.blocks[0](torch.randn(1, 256, 32, dtype=torch.float64, requires_grad=True), None)
    assert len(seen) == 3
    assert all(storage.expired() for storage in seen)
    out.sum().backward()


def test_nothing_is_made_again_where_no_gradient_is_wanted() -> None:
    model = fresh(CONFIG)
    ids = torch.randint(61, (1, 40))
    with torch.no_grad():
        wanted = model(ids)
        model.set_recompute(Recompute(tile_tokens=7))
        assert torch.equal(model(ids), wanted)


# The compiler warns of what a CPU alone asks for, where nothing is compiled in earnest.
@pytest.mark.filterwarnings("ignore")
def test_it_works_beside_compiled_code() -> None:
    model = fresh(CONFIG, torch.float32)
    how = Recompute(keeps_attention=True, tile_tokens=100)
    wanted = loss_and_gradients(model, how)
    model.loss = torch.compile(model.loss, backend="eager", dynamic=False)  # type: ignore[method-assign]
    assert_alike(loss_and_gradients(model, how), wanted, 1e-4)


def test_no_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="tile_tokens must be at least 1, got 0"):
        Recompute(tile_tokens=0)
