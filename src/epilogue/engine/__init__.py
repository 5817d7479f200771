"""Tokens to tokens: reads a text once, then chooses what comes next."""

from epilogue.engine.capacity import available_bytes
from epilogue.engine.engine import Engine, OnProgress
from epilogue.engine.grammar import Grammar, GrammarText
from epilogue.engine.library import Found, Kept, Library, Opened, id_of
from epilogue.engine.prose import stream_text
from epilogue.engine.sampling import Sampler
from epilogue.engine.sampling_params import SamplingParams
from epilogue.engine.scoring import Scores
from epilogue.engine.sequence import Sequence
from epilogue.engine.stats import Stats
from epilogue.kernels.paged_attention import PAGE_TOKENS, Storage

__all__ = [
    "PAGE_TOKENS",
    "Engine",
    "Found",
    "Grammar",
    "GrammarText",
    "Kept",
    "Library",
    "OnProgress",
    "Opened",
    "Sampler",
    "SamplingParams",
    "Scores",
    "Sequence",
    "Stats",
    "Storage",
    "available_bytes",
    "id_of",
    "stream_text",
]
