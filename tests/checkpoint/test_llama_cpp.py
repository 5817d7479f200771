"""The same story from llama.cpp and from here, where llama-cpp-python is installed (the benchmarks extra)."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.material import tiny_config, tiny_state
from epilogue.checkpoint import Checkpoint, export_gguf, load_checkpoint, load_tokenizer, save_checkpoint
from epilogue.engine import Engine, SamplingParams
from epilogue.model import AttentionConfig
from epilogue.text import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")

BUNDLED = Path(str(files("epilogue"))) / "bundled"
CHAPTER_TOKENS = 1024
ODD_TEXT = "  two  spaces\t\ttabs\r\n\r\n1984 x2 don't DON'T “q” naïve 日本語 🙂 \xa0        eight"
SWITCHES = {
    "slopes to 16 and a clamp": {"attn_config": AttentionConfig(alibi=True, alibi_bias_max=16, clip_qkv=0.5)},
    "three heads": {"d_model": 96, "n_heads": 3},
    "twelve heads": {"d_model": 192, "n_heads": 12},
    "learned positions": {"attn_config": AttentionConfig(), "max_seq_len": 64},
    "biases": {"no_bias": False},
    "one bias more": {"attention_bias": True},
    "grouped heads": {"attn_config": AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2)},
    "a head of its own": {"tie_word_embeddings": False},
    "a broken ratio": {"expansion_ratio": 1.5},
}


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
    for text in (story, ODD_TEXT, "<|endoftext|>"):
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


def scores_of(path: Path, ids: list[int]) -> torch.Tensor:
    """llama.cpp's logits_TV, with float32 keys and values."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False, type_k=0, type_v=0
    )
    llama.eval(ids)
    logits_TV = torch.from_numpy(llama.scores[: len(ids)].copy())
    llama.close()
    return logits_TV


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES.keys())
def test_every_switch_that_is_carried_is_computed(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(**{"d_model": 64, "vocab_size": 8192} | changes)
    # Small enough for llama.cpp's GELU, which is the tanh form out of a table of f16.
    state = {name: tensor * (0.2 if tensor.ndim > 1 else 1) for name, tensor in tiny_state(config).items()}
    for name in state:
        if name.endswith("bias"):
            state[name] = torch.randn_like(state[name]) * 0.1
    save_checkpoint(tmp_path / "model", state, config, tokenizer_file=BUNDLED / "epilogue-tiny" / "tokenizer.json")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", weight_type="f32")
    ids = torch.randint(8192, (48,)).tolist()
    with torch.no_grad():
        wanted_TV = load_checkpoint(tmp_path / "model").model(torch.tensor([ids]))[0]
    off = (scores_of(tmp_path / "model.gguf", ids) - wanted_TV).abs().max() / wanted_TV.std()
    assert off < 0.005


@pytest.mark.parametrize("weight_type", ["bf16", "q8_0", "q4_0"])
def test_packed_weights_mean_the_same(tmp_path: Path, weight_type: str, story: str) -> None:
    path = tmp_path / "bundled.gguf"
    export_gguf(BUNDLED / "epilogue-tiny", path, weight_type=weight_type)
    checkpoint = load_checkpoint(path, dtype=torch.float32)
    ids = load_tokenizer(path, checkpoint.config).encode(story)[:48]
    with torch.no_grad():
        wanted_TV = checkpoint.model(torch.tensor([ids]))[0]
    # llama.cpp rounds what it multiplies packed weights by to 8 bits.
    off = (scores_of(path, ids) - wanted_TV).square().mean().sqrt() / wanted_TV.std()
    assert off < (0.005 if weight_type == "bf16" else 0.03)


def test_the_tokenizer_of_the_released_models(tmp_path: Path, neox_tokenizer: Path, story: str) -> None:
    config = tiny_config(d_model=32, vocab_size=50432)
    definition = neox_tokenizer / "tokenizer.json"
    save_checkpoint(tmp_path / "model", tiny_state(config), config, tokenizer_file=definition)
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    llama = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    for text in (story, ODD_TEXT):
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == Tokenizer.from_file(definition).encode(
            text
        )
