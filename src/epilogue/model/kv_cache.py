"""KVCache: the keys and values of what has been read, in memory taken once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from epilogue.kernels.attention import Backend, attention
from epilogue.model.config import MPTConfig
from epilogue.model.reach import PAGE_TOKENS, ReachPlan, page_norms, plan_reach


@dataclass
class Reads:
    """How much of the past attention has looked at, per head and over all layers, as (query, key) pairs."""

    visited_H: Tensor
    dense_H: Tensor

    def add(self, plan: ReachPlan) -> None:
        """Count one call."""
        visited_H, dense = plan.visited()
        self.visited_H += visited_H.cpu()
        self.dense_H += dense

    @property
    def share(self) -> float:
        """Of all keys that a model without reach would have looked at; 1 before anything was read."""
        return float(self.visited_H.sum() / self.dense_H.sum()) if self.dense_H.any() else 1.0


class KVCache:
    """Keys and values of every layer in buffers of fixed capacity; appending copies only what is new.

    The first ``length`` tokens are held. A forward pass writes each layer with ``append`` and ends with ``advance``;
    the views that ``append`` returns are valid until the next ``append`` to that layer. ALiBi keeps positions out of
    the keys, so ``truncate`` is all that going back takes.

    Beside the keys it keeps the largest key norm of every page, from which each ``attend`` proves how far back its
    queries must look: older keys hold at most ``epsilon`` of the probability. 0 looks at everything.
    """

    def __init__(
        self,
        config: MPTConfig,
        *,
        capacity_tokens: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        epsilon: float = 1e-6,
    ) -> None:
        shape = (batch, config.kv_n_heads, capacity_tokens, config.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        num_pages = -(-capacity_tokens // PAGE_TOKENS)
        self._norms = torch.zeros(config.n_layers, config.kv_n_heads, num_pages, device=device)
        self.capacity_tokens = capacity_tokens
        self.epsilon = epsilon
        self.length = 0
        self.reads = Reads(
            torch.zeros(config.n_heads, dtype=torch.int64), torch.zeros(config.n_heads, dtype=torch.int64)
        )

    def attend(
        self,
        layer: int,
        q_BTHD: Tensor,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        slopes_H: Tensor,
        *,
        scale: float,
        backend: Backend | None = None,
    ) -> Tensor:
        """Append new tokens to a layer and attend from them to everything within reach; out_BTHD."""
        k_BSKD, v_BSKD = self.append(layer, k_BTKD, v_BTKD)
        num_keys = k_BSKD.shape[1]
        norms_KP = self._norms[layer, :, : -(-num_keys // PAGE_TOKENS)]
        plan = plan_reach(q_BTHD, k_BTKD, norms_KP, slopes_H, scale=scale, epsilon=self.epsilon, num_keys=num_keys)
        self.reads.add(plan)
        return attention(q_BTHD, k_BSKD, v_BSKD, slopes_H, scale=scale, first_key_HN=plan.first_key_HN, backend=backend)

    def append(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Write new tokens behind those held and return all of them as views k_BSKD, v_BSKD.

        ``length`` stays as it was: every layer of a pass appends at the same place.

        Raises:
            ValueError: more tokens than the capacity.
        """
        stop = self.length + k_BTKD.shape[1]
        if stop > self.capacity_tokens:
            raise ValueError(f"{stop} tokens do not fit a cache of {self.capacity_tokens}")
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self.length : stop] = k_BTKD.transpose(1, 2)
        values[:, :, self.length : stop] = v_BTKD.transpose(1, 2)
        self._append_norms(layer, k_BTKD)
        return keys[:, :, :stop].transpose(1, 2), values[:, :, :stop].transpose(1, 2)

    def _append_norms(self, layer: int, k_BTKD: Tensor) -> None:
        """Keep each page's largest norm; of tokens forgotten in the middle of a page too, which is safe."""
        first, inside = divmod(self.length, PAGE_TOKENS)
        new_KP = page_norms(torch.nn.functional.pad(k_BTKD, (0, 0, 0, 0, inside, 0)))
        if inside:
            new_KP[:, 0] = torch.maximum(new_KP[:, 0], self._norms[layer, :, first])
        self._norms[layer, :, first : first + new_KP.shape[1]] = new_KP

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has appended."""
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot keep {length} of {self.length} tokens")
        self.length = length

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers, filled or not."""
        return sum(x.numel() * x.element_size() for x in (*self._keys, *self._values))
