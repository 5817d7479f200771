"""One layer's decode of one sequence in one call: keys and values stored, reach planned, pages read."""

from epilogue.kernels.reach_decode.op import Backend, reach_decode, runs_natively
from epilogue.kernels.reach_decode.tables import Decoded, LayerTable, ScoreBounds

__all__ = ["Backend", "Decoded", "LayerTable", "ScoreBounds", "reach_decode", "runs_natively"]
