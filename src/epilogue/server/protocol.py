"""What every API turns its requests into, and what comes back: one vocabulary between the protocols and the worker.

No input or output happens here.
"""

from dataclasses import dataclass, field
from typing import Literal

from epilogue.engine import Grammar, SamplingParams
from epilogue.errors import EpilogueError

Reason = Literal["stop", "length", "cancelled"]
"""``stop`` is a stop string or the end of text; ``length`` that as many tokens were written as asked for."""


class QueueFullError(EpilogueError):
    """As many requests wait as may, or those at work need the memory; to be tried again later."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A request for one or several continuations of one text."""

    prompt: str | tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    memory: str = ""
    """Stands before the prompt and is kept whole where the prompt is cut to ``max_context_tokens``."""
    num_texts: int = 1
    stop: tuple[str, ...] = ()
    keeps_stop: bool = False
    """Whether the stop string that ended a text is part of it."""
    banned_phrases: tuple[str, ...] = ()
    """Never written, in whatever case: the text goes back to before one and takes another way."""
    grammar: Grammar | None = None
    """What the text may be."""
    grammar_written: str = ""
    """How the grammar's text begins already, at the prompt's end."""
    num_logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each chosen one; None tells nothing."""
    scores_prompt: bool = False
    """Whether to tell, with as many of the likeliest tokens, how likely the prompt's own tokens were."""
    max_context_tokens: int | None = None
    """The oldest of the prompt is left out beyond this, room for what is written included; None leaves out nothing."""
    title: str = ""
    """Of the book, for people."""
    key: str | None = None
    """By which other requests ask for its text so far, or end it."""


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was before any filter, and which ones were likeliest."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Begun:
    """The request was taken up."""

    num_prompt_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True)
class Reading:
    """So many of the tokens that are not known yet have been read."""

    num_read: int
    num_total: int
    seconds_left: float | None = None
    """At the pace so far."""


@dataclass(frozen=True)
class Scored:
    """How likely the next tokens of the prompt were; of the first of all nothing is known: minus infinity."""

    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class Piece:
    """Text that one continuation has grown by; never empty of both text and tokens."""

    index: int
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class Ended:
    """One continuation is complete."""

    index: int
    reason: Reason
    num_tokens: int
    seed: int


@dataclass(frozen=True)
class Failed:
    """The request cannot be served, or not any further; nothing follows."""

    error: Exception


@dataclass(frozen=True)
class Done:
    """All continuations are complete; nothing follows."""

    read_s: float
    write_s: float


Event = Begun | Reading | Scored | Piece | Ended | Failed | Done
