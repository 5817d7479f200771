"""The same story from llama.cpp and from here, where llama-cpp-python is installed (the benchmarks extra)."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from epilogue.checkpoint import Checkpoint, export_gguf, load_checkpoint, load_tokenizer
from epilogue.engine import Engine, SamplingParams

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")

BUNDLED = Path(str(files("epilogue"))) / "bundled"
CHAPTER_TOKENS = 1024


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Any]:
    """The bundled model in f16, loaded by either program."""
    path = tmp_path_factory.mktemp("llama") / "bundled.gguf"
    export_gguf(BUNDLED / "epilogue-tiny", path, weight_type="f16")
    llama = llama_cpp.Llama(
        str(path), n_ctx=2048, n_threads=1, n_threads_batch=1, flash_attn=True, logits_all=True, verbose=False
    )
    return load_checkpoint(path, dtype=torch.float32), llama


@pytest.fixture(scope="module")
def story() -> str:
    return (BUNDLED / "a-life-in-being.txt").read_text(encoding="utf-8")


def test_the_same_tokens(both: tuple[Checkpoint, Any], story: str) -> None:
    ours, llama = both
    tokenizer = load_tokenizer(ours.directory, ours.config)
    for text in (story, "  two  spaces\t\ttabs\r\n\r\n1984 x2 don't DON'T “q” naïve 日本語 🙂 \xa0", "<|endoftext|>"):
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)


def test_the_same_greedy_story(both: tuple[Checkpoint, Any], story: str) -> None:
    ours, llama = both
    ids = load_tokenizer(ours.directory, ours.config).encode(story)[:400]
    engine = Engine(ours.model)
    params = SamplingParams(max_new_tokens=200, temperature=0, repetition_penalty=1, ignore_eos=True)
    wanted = list(engine.stream(engine.open_book(ids, room_tokens=200), params, eos_id=0))
    llama.reset()
    llama.eval(ids)
    written = []
    for _ in range(200):
        written.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(written[-1:])
    assert written == wanted


def test_the_same_perplexity(both: tuple[Checkpoint, Any], story: str) -> None:
    ours, llama = both
    ids = load_tokenizer(ours.directory, ours.config).encode(story)[:CHAPTER_TOKENS]
    llama.reset()
    llama.eval(ids)
    logits_TV = torch.from_numpy(llama.scores[: len(ids) - 1].copy())
    theirs = torch.nn.functional.cross_entropy(logits_TV, torch.tensor(ids[1:])).exp()
    wanted = (-Engine(ours.model).score(ids).mean()).exp()
    assert abs(float(theirs / wanted) - 1) < 1e-3
