"""CHECKPOINT -> QUANTISED CHECKPOINT, offline: GPTQ with the model's own attention, on samples as long as books.

gptq         one layer's weights and the moments of its inputs to codes
calibrate    books to samples
activations  what flows between blocks, on disk
block        a block run over samples, and quantised on the way
held_out     what stands before the first block and behind the last
convert      block after block from one directory to another, resumable
"""

from epilogue.quant.calibrate import book_samples
from epilogue.quant.convert import quantise_checkpoint
from epilogue.quant.gptq import Scheme
from epilogue.quant.held_out import HeldOut
from epilogue.quant.job import Job, LayerReport, Method, Report

__all__ = ["HeldOut", "Job", "LayerReport", "Method", "Report", "Scheme", "book_samples", "quantise_checkpoint"]
