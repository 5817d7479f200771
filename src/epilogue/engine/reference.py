"""The engine in its plainest form: no cache, no chunks, the whole text through the model for every token."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from epilogue.engine.sampling import Sampler
from epilogue.engine.sampling_params import SamplingParams
from epilogue.model import MPT
from epilogue.model.blocks import Attention


def generate(
    model: MPT,
    ids: Iterable[int],
    params: SamplingParams,
    *,
    eos_id: int | None = None,
    num_tokens: int | None = None,
) -> list[int]:
    """The tokens that ``Engine.stream`` must yield after ``Engine.open_book``, given room enough.

    Time and memory grow with the square of the text: for tests.
    """
    text = list(ids)
    num_read = len(text)
    sampler = Sampler(params, eos_id=eos_id, num_tokens=num_tokens)
    with torch.inference_mode(), _reference_attention(model.eval()):
        while len(text) < num_read + params.max_new_tokens:
            logits_BTV = model(torch.tensor([text], device=model.device))
            token_id = sampler.sample(logits_BTV[0, -1], text)
            if token_id == eos_id:
                break
            text.append(token_id)
    return text[num_read:]


@contextmanager
def _reference_attention(model: MPT) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    backends = [layer.backend for layer in layers]
    model.set_attention_backend("reference")
    try:
        yield
    finally:
        for layer, backend in zip(layers, backends, strict=True):
            layer.backend = backend
