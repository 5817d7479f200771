"""What a device has been asked for and the host may not need yet."""

import torch
from torch import Tensor


class Answer:
    """A tensor on its way to the host. Nobody waits for it before it is read."""

    def __init__(self, x: Tensor) -> None:
        self._here: torch.cuda.Event | None = None
        if x.device.type == "cuda":
            self._x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._x.copy_(x, non_blocking=True)
            self._here = torch.cuda.Event()
            self._here.record(torch.cuda.current_stream(x.device))
        else:
            self._x = x.cpu()

    @property
    def is_here(self) -> bool:
        """Whether it was there at once, as from a CPU."""
        return self._here is None

    def read(self) -> Tensor:
        """The tensor on the CPU; waits for the work that the device was given before it was asked."""
        if self._here is not None:
            self._here.synchronize()
        return self._x
