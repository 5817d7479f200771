"""KVCache: the keys and values of what has been read, in memory taken once."""

import torch
from torch import Tensor

from epilogue.model.config import MPTConfig


class KVCache:
    """Keys and values of every layer in buffers of fixed capacity; appending copies only what is new.

    The first ``length`` tokens are held. A forward pass writes each layer with ``append`` and ends with ``advance``;
    the views that ``append`` returns are valid until the next ``append`` to that layer. ALiBi keeps positions out of
    the keys, so ``truncate`` is all that going back takes.
    """

    def __init__(
        self,
        config: MPTConfig,
        *,
        capacity_tokens: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, config.kv_n_heads, capacity_tokens, config.head_dim)
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.capacity_tokens = capacity_tokens
        self.length = 0

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
        return keys[:, :, :stop].transpose(1, 2), values[:, :, :stop].transpose(1, 2)

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
