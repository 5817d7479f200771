"""llama.cpp through llama-cpp-python: read some tokens, write one, look at the logits."""

import time
from pathlib import Path

import numpy as np
import torch
from llama_cpp import Llama
from torch import Tensor

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}


class LlamaReader:
    """One text in llama.cpp.

    Args:
        path: a .gguf.
        room_tokens: the longest text.
        threads: for reading and for writing.
        has_flash_attention: which of its two kinds of attention; quantised values need it.
        kv_type: one of ``KV_TYPES``.
    """

    def __init__(
        self, path: Path, *, room_tokens: int, threads: int, has_flash_attention: bool = True, kv_type: str = "f16"
    ) -> None:
        self._llama = Llama(
            str(path), n_ctx=room_tokens, n_threads=threads, n_threads_batch=threads, verbose=False,
            flash_attn=has_flash_attention, type_k=KV_TYPES[kv_type], type_v=KV_TYPES[kv_type],
        )  # fmt: skip

    @property
    def num_tokens(self) -> int:
        """Length of the text so far."""
        return int(self._llama.n_tokens)

    def read(self, ids: list[int]) -> list[float]:
        """Read on; seconds of every batch of 512 tokens."""
        seconds = []
        for start in range(0, len(ids), self._llama.n_batch):
            begun = time.perf_counter()
            self._llama.eval(ids[start : start + self._llama.n_batch])
            self.logits_V()  # waits until it is done
            seconds.append(time.perf_counter() - begun)
        return seconds

    def write(self, num_tokens: int) -> list[float]:
        """Write so many tokens, the likeliest each, and forget them again; seconds of every one."""
        end, seconds = self.num_tokens, []
        for _ in range(num_tokens):
            begun = time.perf_counter()
            self._llama.eval([int(self.logits_V().argmax())])
            seconds.append(time.perf_counter() - begun)
        self._llama.n_tokens = end
        return seconds

    def logits_V(self) -> Tensor:
        """Of the last token that was read."""
        pointer = self._llama._ctx.get_logits()
        return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),)).copy())

    def close(self) -> None:
        """Give the memory back."""
        self._llama.close()
