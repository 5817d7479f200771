"""The Kobold API's words: requests to generations, events to answers. No input or output happens here.

Fields, defaults and aliases are KoboldCpp's, as Kobold Lite and SillyTavern send them: every alias at once, numbers as
strings, lists as strings of JSON, null for what is not set. Unknown fields mean nothing.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from epilogue.engine import SamplingParams
from epilogue.engine.sampling_params import NUM_SEEDS, Stage
from epilogue.errors import RequestError
from epilogue.server.protocol import Ended, Event, Generation, Piece
from epilogue.text import Tokenizer

API_VERSION = "1.2.5"
"""Of the United API: clients open features by it."""
KOBOLDCPP_VERSION = "1.102"
"""The KoboldCpp whose extra endpoints are spoken: clients open features by it."""
# By their number in sampler_order.
_STAGES: tuple[Stage, ...] = ("top_k", "top_a", "top_p", "tail_free", "typical", "temperature", "repetition")
_REPETITION = _STAGES.index("repetition")
# The first name that is there counts.
_ALIASES: dict[str, tuple[str, ...]] = {
    "max_length": ("max_new_tokens", "max_tokens", "n_predict", "max_completion_tokens"),
    "max_context_length": ("truncation_length",),
    "rep_pen": ("repetition_penalty", "repeat_penalty"),
    "rep_pen_range": ("repetition_penalty_range", "repeat_last_n"),
    "typical": ("typical_p",),
    "tfs": ("tfs_z",),
    "mirostat": ("mirostat_mode",),
    "sampler_seed": ("seed",),
    "stop_sequence": ("stop", "stopping_strings"),
    "banned_tokens": ("banned_strings",),
    "bypass_eos": ("ban_eos_token", "ignore_eos", "use_default_badwordsids"),
    "dynatemp_range": ("dynatemp",),
}


def _as_list(value: object) -> object:
    """A list that came as JSON in a string, or as lines."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return [value]
    return parsed if isinstance(parsed, list) else [value]


def _as_ids(value: object) -> object:
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


_Text = Annotated[str, Field(max_length=64_000_000)]
_Texts = Annotated[list[Annotated[str, Field(max_length=10_000)]], BeforeValidator(_as_list)]


class KoboldRequest(BaseModel):
    """The body of ``generate``, after aliases."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    prompt: _Text = ""
    memory: _Text = ""
    genkey: Annotated[str, Field(max_length=200)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    max_length: Annotated[int, Field(ge=0, le=1_000_000)] = 400
    max_context_length: Annotated[int, Field(ge=1)] | None = None
    temperature: float = 0.75
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    smoothing_factor: float = 0.0
    smoothing_curve: float = 1.0
    top_k: int = 100
    top_a: float = 0.0
    top_p: float = 0.92
    min_p: float = 0.0
    typical: float = 1.0
    tfs: float = 1.0
    rep_pen: float = 1.0
    rep_pen_range: int = 320
    rep_pen_slope: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 320
    dry_sequence_breakers: _Texts = []
    xtc_threshold: float = 0.2
    xtc_probability: float = 0.0
    sampler_order: Annotated[list[int], Field(max_length=16), BeforeValidator(_as_list)] = [6, 0, 1, 3, 4, 2, 5]
    sampler_seed: int = -1
    stop_sequence: Annotated[_Texts, Field(max_length=256)] = []
    trim_stop: bool = True
    bypass_eos: bool = False
    logit_bias: Annotated[dict[int, float], Field(max_length=4096)] = {}
    custom_token_bans: Annotated[list[int], Field(max_length=4096), BeforeValidator(_as_ids)] = []
    banned_tokens: Annotated[_Texts, Field(max_length=768)] = []
    logprobs: Annotated[int, BeforeValidator(lambda x: 5 if x is True else x)] = 0
    grammar: str = ""

    @model_validator(mode="before")
    @classmethod
    def _merge_aliases(cls, body: Any) -> Any:
        return _merged(body) if isinstance(body, Mapping) else body


def generation_of(request: KoboldRequest, tokenizer: Tokenizer) -> Generation:
    """The generation that a request asks for.

    Raises:
        RequestError: a field is out of range, or asks for what is not done here.
    """
    if request.grammar:
        raise RequestError("grammar is not supported by this server; leave it out")
    return Generation(
        prompt=request.prompt,
        memory=request.memory,
        params=_params(request, tokenizer),
        num_texts=request.n,
        stop=tuple(text for text in request.stop_sequence if text),
        keeps_stop=not request.trim_stop,
        banned_phrases=tuple(text for text in request.banned_tokens if text),
        num_logprobs=min(request.logprobs, 20) if request.logprobs > 0 else None,
        max_context_tokens=request.max_context_length,
        key=request.genkey,
    )


def _merged(body: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in body.items() if value is not None and value != ""}
    for name, aliases in _ALIASES.items():
        for alias in aliases:
            if name not in given and alias in given:
                given[name] = given[alias]
    return given


def _params(request: KoboldRequest, tokenizer: Tokenizer) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=request.max_length,
        temperature=request.temperature,
        temperature_range=request.dynatemp_range,
        temperature_exponent=request.dynatemp_exponent,
        smoothing_factor=request.smoothing_factor,
        smoothing_curve=request.smoothing_curve,
        top_k=max(0, request.top_k),
        top_a=request.top_a,
        top_p=_share(request.top_p),
        min_p=request.min_p,
        typical=_share(request.typical),
        tail_free=_share(request.tfs),
        repetition_penalty=request.rep_pen or 1.0,
        repetition_range_tokens=max(0, request.rep_pen_range),
        repetition_slope=_share(request.rep_pen_slope),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        mirostat=request.mirostat,
        mirostat_surprise=request.mirostat_tau,
        mirostat_rate=request.mirostat_eta,
        dry_multiplier=request.dry_multiplier,
        dry_base=request.dry_base,
        dry_allowed_length=max(1, request.dry_allowed_length),
        dry_range_tokens=max(0, request.dry_penalty_last_n),
        dry_breakers=tokenizer.ids_containing(tuple(request.dry_sequence_breakers)),
        xtc_probability=request.xtc_probability,
        xtc_threshold=request.xtc_threshold,
        logit_bias=_biases(request),
        order=_order(request.sampler_order),
        seed=None if request.sampler_seed < 0 else request.sampler_seed % NUM_SEEDS,
        ignore_eos=request.bypass_eos,
    )


def _share(value: float) -> float:
    """Clients switch a filter off by 1, 0 or less, or more than 1."""
    return value if 0 < value <= 1 else 1.0


def _biases(request: KoboldRequest) -> dict[int, float]:
    # KoboldCpp's range; its end is a ban.
    biases = {i: float("-inf") if x <= -100 else min(x, 100.0) for i, x in request.logit_bias.items()}
    return biases | dict.fromkeys(request.custom_token_bans, float("-inf"))


def _order(numbers: list[int]) -> tuple[Stage, ...]:
    """Of six numbers the penalty is left out, and comes first."""
    if _REPETITION not in numbers:
        numbers = [_REPETITION, *numbers]
    known = [_STAGES[number] for number in dict.fromkeys(numbers) if 0 <= number < len(_STAGES)]
    return tuple(known + [stage for stage in _STAGES if stage not in known])


def stream_event(event: Event) -> str | None:
    """What the stream says of an event: its exact lines matter to the clients, LF and not CRLF among them."""
    if isinstance(event, Piece):
        return _message(event.text, None)
    if isinstance(event, Ended):
        return _message("", "length" if event.reason == "length" else "stop")
    return None


def _message(token: str, finish_reason: str | None) -> str:
    return f"event: message\ndata: {json.dumps({'token': token, 'finish_reason': finish_reason})}\n\n"
