"""Training a block with little memory: its stream in is kept, nearly everything else is made again on the way back.

PyTorch's own checkpoint around a block whose feed-forward is cut into tiles would run the feed-forward three times:
forward, to come to the tiles again, and in each tile. Here every piece runs twice, and attention once if its results
are kept: those, and not its queries, keys and values, which are made again anyway.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """What a block keeps between the ways forward and back besides the stream that comes in."""

    keeps_attention: bool = False
    """Attention's results and log-sum-exps: d_model values a token more, and attention runs once."""
    tile_tokens: int | None = None
    """Tokens of each sequence that go through the feed-forward at once; all if None."""

    def __post_init__(self) -> None:
        if self.tile_tokens is not None and self.tile_tokens < 1:
            raise ValueError(f"tile_tokens must be at least 1, got {self.tile_tokens}")


@dataclass(frozen=True)
class BlockParts:
    """A block in four pieces, and the weights in it that learn."""

    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    """x_BTC to queries, keys and values."""
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Those to what the heads have gathered, as o_BTHD."""
    join: Callable[[Tensor, Tensor], Tensor]
    """x_BTC and o_BTHD to the stream behind attention."""
    feed: Callable[[Tensor], Tensor]
    """That to the stream behind the block, every token by itself."""
    weights: Sequence[Tensor]
    draws: bool
    """Whether a piece draws random numbers: dropout."""


@torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
def run_block(x_BTC: Tensor, parts: BlockParts, how: Recompute) -> Tensor:
    """The stream behind the block. Gradients reach x_BTC and ``parts.weights``, once.

    Memory until the way back: x_BTC, and twice that with ``how.keeps_attention``. Gradients of weights are summed over
    tiles in fp32.
    """
    return _Block.apply(x_BTC, parts, how, *parts.weights)  # type: ignore[no-untyped-call, no-any-return]


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, parts: BlockParts, how: Recompute, *weights: Tensor) -> Tensor:
        ctx.parts, ctx.how, ctx.surroundings = parts, how, _Surroundings.now(x_BTC.device, draws=parts.draws)
        qkv = parts.project(x_BTC)
        ctx.kept = _KeptAttention(parts.attend, qkv) if how.keeps_attention else None
        o_BTHD = _attend_as_again(parts, qkv) if ctx.kept is None else ctx.kept.o_BTHD.detach()
        del qkv
        joined_BTC = parts.join(x_BTC, o_BTHD)
        ctx.save_for_backward(x_BTC)
        return torch.cat([parts.feed(joined_BTC[:, tile]) for tile in _tiles(joined_BTC, how)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTC: Tensor) -> Any:
        parts, kept = ctx.parts, ctx.kept
        (saved_BTC,) = ctx.saved_tensors
        x_BTC = saved_BTC.detach().requires_grad_()
        total = _Sum(parts.weights)
        with ctx.surroundings.again(), torch.enable_grad():
            qkv = parts.project(x_BTC)
            o_BTHD = parts.attend(*qkv) if kept is None else kept.o_BTHD.detach().requires_grad_()
            joined_BTC = parts.join(x_BTC, o_BTHD)
            grad_joined_BTC = _feed_backward(parts, ctx.how, joined_BTC.detach(), grad_BTC, total)
            if kept is None:
                grad_x = total.take(joined_BTC, (x_BTC,), grad_joined_BTC)[0]
            else:
                grad_x, grad_o = total.take(joined_BTC, (x_BTC, o_BTHD), grad_joined_BTC)
                grad_x = grad_x + total.take(qkv, (x_BTC,), kept.backward(qkv, grad_o))[0]
        return grad_x, None, None, *total.gradients()


def _attend_as_again(parts: BlockParts, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Marked as what gets gradients, so that the kernel is chosen that runs again on the way back: another one rounds
    otherwise than what is differentiated. Nothing is kept."""
    return parts.attend(*(x.detach().requires_grad_() for x in qkv))


def _tiles(x_BTC: Tensor, how: Recompute) -> list[slice]:
    num_tokens = x_BTC.shape[1]
    step = how.tile_tokens or max(1, num_tokens)
    return [slice(start, start + step) for start in range(0, num_tokens, step)]


def _feed_backward(parts: BlockParts, how: Recompute, joined_BTC: Tensor, grad_BTC: Tensor, total: "_Sum") -> Tensor:
    """The gradient before the feed-forward, tile by tile."""
    grad_joined_BTC = torch.empty_like(joined_BTC)
    for tile in _tiles(joined_BTC, how):
        leaf = joined_BTC[:, tile].detach().requires_grad_()
        grad_joined_BTC[:, tile] = total.take(parts.feed(leaf), (leaf,), grad_BTC[:, tile])[0]
    return grad_joined_BTC


class _Sum:
    """Gradients of weights, added up over pieces; in fp32 from the second piece on, for narrow ones lose it else."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = weights
        self._sums: list[Tensor | None] = [None] * len(weights)

    def take(self, outputs: Any, inputs: tuple[Tensor, ...], grads: Any) -> tuple[Tensor, ...]:
        """Gradients of the inputs; those of the weights are added to the sums."""
        found = torch.autograd.grad(outputs, (*inputs, *self._weights), grads, allow_unused=True)
        for place, gradient in enumerate(found[len(inputs) :]):
            held = self._sums[place]
            if gradient is not None:
                self._sums[place] = gradient if held is None else _wide(held).add_(gradient)
        return found[: len(inputs)]

    def gradients(self) -> list[Tensor | None]:
        """In the dtypes of the weights."""
        return [
            None if held is None else held.to(weight.dtype)
            for held, weight in zip(self._sums, self._weights, strict=True)
        ]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _KeptAttention:
    """Attention run once, with the graph of its way back, out of which queries, keys and values were taken.

    Whatever that graph saves of their memory is noted as a place in it, and looked up in those made again. So it works
    for every backend that saves through autograd.
    """

    def __init__(self, attend: Callable[..., Tensor], qkv: tuple[Tensor, Tensor, Tensor]) -> None:
        self._again: tuple[Tensor, ...] = ()
        owners = {x.untyped_storage().data_ptr(): place for place, x in enumerate(qkv)}

        def pack(x: Tensor) -> Any:
            owner = owners.get(x.untyped_storage().data_ptr())
            return x if owner is None else _Place(owner, x.shape, x.stride(), int(x.storage_offset()))

        def unpack(packed: Any) -> Tensor:
            if not isinstance(packed, _Place):
                return packed  # type: ignore[no-any-return]
            return self._again[packed.owner].as_strided(packed.shape, packed.stride, packed.offset)

        with torch.enable_grad(), saved_tensors_hooks(pack, unpack):
            entering = _Entry.apply(torch.zeros((), requires_grad=True), *qkv)  # type: ignore[no-untyped-call]
            self._edges = [get_gradient_edge(x) for x in entering]
            self.o_BTHD = attend(*entering)

    def backward(self, qkv: tuple[Tensor, Tensor, Tensor], grad_BTC: Tensor) -> tuple[Tensor, ...]:
        """Gradients of queries, keys and values, which were made again."""
        self._again = tuple(x.detach() for x in qkv)
        found = torch.autograd.grad(self.o_BTHD, self._edges, grad_BTC)
        self._again = ()
        return found


class _Place(NamedTuple):
    owner: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Entry(torch.autograd.Function):
    """Tensors into a graph that can be asked for their gradients and does not keep them, as leaves would be kept."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        del ctx, anchor
        return tuple(x.detach() for x in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("the way back ends before this")


@dataclass(frozen=True)
class _Surroundings:
    """Autocast and random numbers as they were on the way forward."""

    device: torch.device
    is_autocast: bool
    autocast_dtype: torch.dtype
    random_state: tuple[Tensor, ...]

    @classmethod
    def now(cls, device: torch.device, *, draws: bool) -> "_Surroundings":
        states: tuple[Tensor, ...] = ()
        if draws:
            states = (torch.get_rng_state(),)
            if device.type == "cuda":
                states += (torch.cuda.get_rng_state(device),)
        kind = device.type
        return cls(device, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), states)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same for as long as the block lasts."""
        kind = self.device.type
        devices = [self.device] if kind == "cuda" else []
        with (
            torch.random.fork_rng(devices, enabled=bool(self.random_state)),
            torch.autocast(kind, dtype=self.autocast_dtype, enabled=self.is_autocast),
        ):
            if self.random_state:
                torch.set_rng_state(self.random_state[0])
            if len(self.random_state) > 1:
                torch.cuda.set_rng_state(self.random_state[1], self.device)
            yield
