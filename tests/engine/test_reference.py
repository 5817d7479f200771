"""The oracle itself, against what can be said without it."""

import torch

from epilogue.engine import SamplingParams
from epilogue.engine.reference import generate
from epilogue.model.blocks import Attention

GREEDY = SamplingParams(temperature=0, repetition_penalty=1, max_new_tokens=6)


def backends(model) -> list[str | None]:
    return [module.backend for module in model.modules() if isinstance(module, Attention)]


def test_greedy_takes_the_largest_logit_each_time(tiny_mpt, book) -> None:
    model = tiny_mpt()
    written = generate(model, book, GREEDY)
    logits_TV = model(torch.tensor([book + written]))[0]
    assert written == logits_TV[len(book) - 1 : -1].argmax(-1).tolist()


def test_end_of_text_stops_it(tiny_mpt, book) -> None:
    model = tiny_mpt()
    written = generate(model, book, GREEDY)
    assert generate(model, book, GREEDY, eos_id=written[2]) == written[: written.index(written[2])]


def test_the_backends_are_as_they_were(tiny_mpt, book) -> None:
    model = tiny_mpt()
    next(module for module in model.modules() if isinstance(module, Attention)).backend = "cpu"
    generate(model, book, GREEDY)
    assert backends(model) == ["cpu", None]
