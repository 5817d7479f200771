"""A stand-in for a CUDA graph where there is no GPU: kernels are written down once and run again on the same memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What would make the host wait for a GPU, or give a shape that depends on numbers.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


def storage_of(x: Any) -> int | None:
    return x.untyped_storage()._cdata if isinstance(x, Tensor) else None


@dataclass
class Tape(TorchDispatchMode):
    """Writes down every operator, and plays them again: no Python of ours runs then, as in a graph's replay."""

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        assert name not in FORBIDDEN, f"{name} reads a number on the host"
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index"
        out = func(*args, **kwargs)
        given = {storage_of(x) for x in tree_leaves((args, kwargs))} - {None}
        is_view = all(storage_of(x) in given for x in tree_leaves(out) if isinstance(x, Tensor))
        if not is_view or func._schema.is_mutable:
            self.calls.append((func, args, kwargs, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and storage_of(old) != storage_of(new):
                    old.copy_(new)


@dataclass
class Captures:
    """Captures steps on tapes, and counts what a graph would be asked to do."""

    tapes: list[Tape] = field(default_factory=list)
    num_replays: int = 0

    def __call__(self, step: Callable[[], Any]) -> Callable[[], Any]:
        step()
        with Tape() as tape:
            results = step()
        self.tapes.append(tape)

        def replay() -> Any:
            self.num_replays += 1
            # Whatever a replay does not write anew is found out.
            for x in vars(results).values():
                if x is not None:
                    x.fill_(-1 if x.dtype == torch.int64 else float("nan"))
            tape.play()
            return results

        return replay
