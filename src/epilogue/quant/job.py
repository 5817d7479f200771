"""What is to be quantised and how, and what came of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from epilogue.model import MPTConfig
from epilogue.quant.gptq import Scheme
from epilogue.quant.held_out import HeldOut

Method = Literal["gptq", "rtn"]
"""GPTQ, or rounding to nearest, which sees no inputs."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What quantising one layer did to its outputs."""

    block: int
    layer: str
    error_nearest: float
    """Squared error of the outputs as a share of their squares, had each weight been rounded to nearest."""
    error: float
    """The same of the codes that were chosen. Without calibration both are of the weights."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a whole quantisation did."""

    layers: list[LayerReport]
    dense_bits_per_byte: float
    """Of the held-out text."""
    quantised_bits_per_byte: float
    held_out_tokens: int
    calibration_tokens: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be quantised, how, and on what."""

    source: Path
    """The directory of a dense checkpoint."""
    out: Path
    """The directory to make; ``out`` with ``.partial`` holds the work until then."""
    scheme: Scheme
    method: Method = "gptq"
    calibration: list[list[int]]
    """Samples of token ids; not looked at by ``rtn``."""
    held_out: HeldOut

    @property
    def workplace(self) -> Path:
        """Where unfinished work lies."""
        return self.out.with_name(f"{self.out.name}.partial")

    def fingerprint(self, config: MPTConfig) -> str:
        """Says whether unfinished work is of this job."""
        told = [str(self.source.resolve()), repr(config), repr(self.scheme), self.method]
        told += [f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(self.source.iterdir())]
        told += [repr(self.calibration), repr(self.held_out.samples)]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()
