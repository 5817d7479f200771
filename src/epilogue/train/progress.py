"""What a step tells its watcher: how well it goes, how fast, how much memory, how long still."""

import math
import time
from dataclasses import dataclass

import psutil
import torch

from epilogue.data import Batch
from epilogue.model import MPTConfig, flops_per_token


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step."""

    step: int
    """Steps done."""
    steps: int
    loss: float
    """Nats a token of this step's batch, before its update."""
    bits_per_byte: float
    """The same over the UTF-8 bytes of the text, at the shards' mean bytes a token."""
    tokens_per_s: float
    """Of this step, saving and evaluation not counted."""
    mfu: float | None
    """Model FLOPs utilisation: arithmetic of forward and backward, of attention only the pairs that causality and the
    documents let it see, over what the device can do at best; None where nobody measured that."""
    memory_bytes: int
    """Of the first process: on CUDA the most that tensors have taken so far, elsewhere what the process takes now."""
    left_s: float
    """To the last step, at the pace of the steps since the start, with saving and evaluation."""
    learning_rate: float
    num_skipped: int = 0
    """Steps left out so far because their loss was a spike."""

    def entry(self) -> dict[str, float]:
        """What is logged of it, without the counts of steps."""
        numbers = {
            "loss": round(self.loss, 5),
            "bits_per_byte": round(self.bits_per_byte, 5),
            "tokens_per_s": round(self.tokens_per_s),
            "memory_bytes": self.memory_bytes,
            "learning_rate": self.learning_rate,
        }
        return numbers if self.mfu is None else numbers | {"mfu": round(self.mfu, 4)}


class Meter:
    """Makes a ``Progress`` of each step; its clock starts when it is made.

    Args:
        config: of the model.
        bytes_per_token: of the training text.
        first_step: steps done before.
        steps: of the whole run.
        device: what trains.
        peak_flop_per_s: what all devices together can do at best; None if nobody measured it.
    """

    def __init__(
        self,
        config: MPTConfig,
        *,
        bytes_per_token: float,
        first_step: int,
        steps: int,
        device: str,
        peak_flop_per_s: float | None,
    ) -> None:
        self._config, self._bytes_per_token, self._device = config, bytes_per_token, device
        self._first_step, self._steps, self._peak_flop_per_s = first_step, steps, peak_flop_per_s
        self._start_s = time.monotonic()

    def report(
        self, step: int, batch: Batch, *, loss: float, time_s: float, learning_rate: float, num_skipped: int = 0
    ) -> Progress:
        """The step that has just been done, in ``time_s``."""
        time_s = max(time_s, 1e-9)
        flops = training_flops(self._config, batch.num_targets, batch.num_pairs)
        peak = self._peak_flop_per_s
        per_step_s = (time.monotonic() - self._start_s) / (step - self._first_step)
        return Progress(
            step=step,
            steps=self._steps,
            loss=loss,
            bits_per_byte=loss / math.log(2) / max(self._bytes_per_token, 1e-9),
            tokens_per_s=batch.num_targets / time_s,
            mfu=None if peak is None else flops / time_s / peak,
            memory_bytes=_memory_bytes(self._device),
            left_s=per_step_s * (self._steps - step),
            learning_rate=learning_rate,
            num_skipped=num_skipped,
        )


def training_flops(config: MPTConfig, num_tokens: int, num_pairs: int) -> int:
    """Floating-point operations of forward and backward over tokens of which attention sees so many pairs.

    The model's own: what is computed again to save memory, or masked away, is not counted.
    """
    linear = num_tokens * flops_per_token(config, context_tokens=0)
    one_pair = flops_per_token(config, context_tokens=1) - flops_per_token(config, context_tokens=0)
    return 3 * (linear + num_pairs * one_pair)


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
