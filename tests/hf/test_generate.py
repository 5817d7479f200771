"""generate(): the engine's tokens, and batches padded on the left that are their texts one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import epilogue.hf  # noqa: F401 - registers
from epilogue.checkpoint import load_checkpoint
from epilogue.engine import Engine, SamplingParams

TEXTS = [[7, 3, 50], list(range(2, 42)), [9], [60, 2] * 9]
PAD = 1
# A tiny model left alone says one token for ever, by which no mistake would show.
GREEDY = {"do_sample": False, "repetition_penalty": 3.0, "pad_token_id": PAD}


def opened(directory: Path, **settings: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings).eval()


def padded(texts: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    longest = max(map(len, texts))
    gaps = [[PAD] * (longest - len(text)) for text in texts]
    pairs = list(zip(gaps, texts, strict=True))
    ids = [gap + text if side == "left" else text + gap for gap, text in pairs]
    marks = [[0] * len(gap) + [1] * len(text) for gap, text in pairs]
    mask = torch.tensor(marks)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": mask if side == "left" else mask.flip(1),
    }


def greedy(model: Any, text: list[int], **settings: Any) -> list[int]:
    ids = torch.tensor([text])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **settings)
    return out[0, len(text) :].tolist()


def engines(directory: Path, text: list[int], max_new_tokens: int) -> list[int]:
    engine = Engine(load_checkpoint(directory, dtype=torch.float32).model)
    sequence = engine.open_book(text)
    params = SamplingParams(
        temperature=0, repetition_penalty=3, repetition_range_tokens=1000, max_new_tokens=max_new_tokens
    )
    return list(engine.stream(sequence, params))


@pytest.mark.parametrize("text", TEXTS, ids=len)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_engines(storywriter: Path, text: list[int], use_cache: bool) -> None:
    model = opened(storywriter)
    tokens = greedy(model, text, max_new_tokens=30, eos_token_id=None, use_cache=use_cache)
    assert tokens == engines(storywriter, text, 30)
    assert len(set(tokens)) > 3


def test_a_cache_is_kept_although_the_released_files_say_no(storywriter: Path) -> None:
    model = opened(storywriter)
    assert not model.config.use_cache
    assert model.generation_config.use_cache
    out = model.generate(torch.tensor([TEXTS[0]]), max_new_tokens=3, return_dict_in_generate=True, pad_token_id=PAD)
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1


ARCHITECTURES = {
    "storywriter": {},
    "learned positions": {"attention": {"alibi": False}, "max_seq_len": 80},
    "grouped queries": {"attention": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}},
    "norms on queries": {"attention": {"qk_ln": True}, "no_bias": False},
    "three heads, scaled logits": {"n_heads": 3, "d_model": 24, "logit_scale": "inv_sqrt_d_model"},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_left_padded_batches_are_their_texts_one_by_one(publish, name: str) -> None:
    model = opened(publish(**ARCHITECTURES[name]))
    together = model.generate(**padded(TEXTS), max_new_tokens=12, **GREEDY, eos_token_id=None)
    alone = [greedy(model, text, max_new_tokens=12, eos_token_id=None) for text in TEXTS]
    assert together[:, -12:].tolist() == alone


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_of_a_padded_batch(publish, name: str, side: str) -> None:
    directory = publish(**ARCHITECTURES[name])
    batch = padded(TEXTS, side)
    logits_BTV = opened(directory)(**batch).logits
    reference = load_checkpoint(directory, dtype=torch.float64).model
    for row, text in enumerate(TEXTS):
        exact_TV = reference(torch.tensor([text]))[0]
        real_TV = logits_BTV[row, batch["attention_mask"][row].bool()]
        torch.testing.assert_close(real_TV.double(), exact_TV, rtol=1e-5, atol=1e-5 * exact_TV.abs().max().item())
    assert logits_BTV.isfinite().all()


@pytest.mark.parametrize("step", [1, 5, 39])
@torch.no_grad()
def test_a_padded_batch_read_in_chunks(storywriter: Path, step: int) -> None:
    model = opened(storywriter)
    batch = padded(TEXTS)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache, parts = None, []
    for start in range(0, ids.shape[1], step):
        stop = min(start + step, ids.shape[1])
        out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    whole = model(**batch).logits[mask.bool()]
    torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_beams_and_samples(storywriter: Path) -> None:
    model = opened(storywriter)
    batch = padded(TEXTS)
    beams = model.generate(**batch, max_new_tokens=5, num_beams=3, **GREEDY, eos_token_id=None)
    alone = model.generate(torch.tensor([TEXTS[0]]), max_new_tokens=5, num_beams=3, **GREEDY, eos_token_id=None)
    assert beams[0, -5:].tolist() == alone[0, -5:].tolist()
    torch.manual_seed(3)
    one = model.generate(**batch, max_new_tokens=5, do_sample=True, temperature=1.5, pad_token_id=PAD)
    torch.manual_seed(3)
    other = model.generate(**batch, max_new_tokens=5, do_sample=True, temperature=1.5, pad_token_id=PAD)
    assert one.tolist() == other.tolist()


def test_a_streamer_hears_every_token(storywriter: Path) -> None:
    class Heard(transformers.generation.BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.has_ended = False

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.has_ended = True

    heard = Heard()
    model = opened(storywriter)
    written = greedy(model, TEXTS[0], max_new_tokens=6, eos_token_id=None, streamer=heard)
    assert heard.tokens == TEXTS[0] + written
    assert heard.has_ended


def test_embeddings_in_place_of_ids(storywriter: Path) -> None:
    model = opened(storywriter)
    embeddings = model.get_input_embeddings()(torch.tensor([TEXTS[0]]))
    settings = GREEDY | {"repetition_penalty": 1.0, "max_new_tokens": 6, "eos_token_id": None}
    out = model.generate(inputs_embeds=embeddings, **settings)
    assert out[0].tolist() == model.generate(torch.tensor([TEXTS[0]]), **settings)[0, 3:].tolist()


@torch.no_grad()
def test_a_cache_handed_over_continues(storywriter: Path) -> None:
    model = opened(storywriter)
    text = torch.tensor([TEXTS[1]])
    cache = model(text[:, :-1], use_cache=True).past_key_values
    assert cache.layers[0].keys.shape == (1, 4, 39, 8)
    assert greedy(model, TEXTS[1], past_key_values=cache, max_new_tokens=6) == greedy(model, TEXTS[1], max_new_tokens=6)


@torch.no_grad()
def test_only_the_logits_asked_for(storywriter: Path) -> None:
    model = opened(storywriter)
    ids = torch.tensor([TEXTS[1]])
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=1).logits, whole[:, -1:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, whole[:, [0, 5]])


@torch.no_grad()
def test_hidden_states_and_tuples(storywriter: Path) -> None:
    model = opened(storywriter)
    ids = torch.tensor([TEXTS[0]])
    out = model(ids, output_hidden_states=True)
    assert [tuple(x.shape) for x in out.hidden_states] == [(1, 3, 32)] * 3
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
    torch.testing.assert_close(model(ids, return_dict=False)[0], out.logits)


@torch.no_grad()
def test_wrong_calls(storywriter: Path) -> None:
    model = opened(storywriter)
    ids = torch.tensor([TEXTS[0]])
    with pytest.raises(ValueError, match="hides tokens between others"):
        model(ids, attention_mask=torch.tensor([[1, 0, 1]]))
    with pytest.raises(ValueError, match=r"attention_mask must be \[batch, 3\]"):
        model(ids, attention_mask=torch.ones(1, 4))
    with pytest.raises(ValueError, match="never has its probabilities"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(TypeError, match="takes no position_ids"):
        model(ids, position_ids=torch.arange(3)[None])
    static = transformers.StaticCache(config=model.config, max_cache_len=16)
    with pytest.raises(ValueError, match="StaticCache does not grow with the text; use DynamicCache"):
        model(ids, past_key_values=static)
    with pytest.raises(ValueError, match="static caches come with, is not run here; use DynamicCache"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)


def test_right_padding_is_refused_where_text_is_generated(storywriter: Path) -> None:
    with pytest.raises(ValueError, match="padding_side='left'"):
        opened(storywriter).generate(**padded(TEXTS, "right"), max_new_tokens=3, pad_token_id=PAD)


def test_learned_positions_end(publish) -> None:
    model = opened(publish(attention={"alibi": False}, max_seq_len=8))
    with pytest.raises(ValueError, match="9 tokens, but this model has learned positions for 8 only"):
        model(torch.tensor([list(range(9))]))


@pytest.mark.gpu
def test_on_an_accelerator(storywriter: Path) -> None:
    """Loaded straight to the GPU, padded, with prompts long enough for the tile kernel."""
    config = transformers.AutoConfig.from_pretrained(storywriter)
    config.attn_config["attn_impl"] = "triton"
    config.init_device = "cuda:0"
    model = opened(storywriter, config=config)
    assert model.device == torch.device("cuda:0")
    batch = {name: tensor.cuda() for name, tensor in padded(TEXTS).items()}
    together = model.generate(**batch, max_new_tokens=12, **GREEDY, eos_token_id=None)[:, -12:].tolist()
    on_cpu = opened(storywriter)
    assert together == [greedy(on_cpu, text, max_new_tokens=12, eos_token_id=None) for text in TEXTS]


def test_a_model_split_over_devices(storywriter: Path, tmp_path: Path) -> None:
    """One block lies on the disk and comes in for its turn."""
    pytest.importorskip("accelerate")
    whole = opened(storywriter)
    places = {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.norm_f": "cpu"}
    places |= {"transformer.blocks.0": "cpu", "transformer.blocks.1": "disk", "transformer.dropout": "cpu"}
    split = opened(storywriter, device_map=places, offload_folder=tmp_path / "offload")
    for text in TEXTS[:2]:
        assert greedy(split, text, max_new_tokens=5) == greedy(whole, text, max_new_tokens=5)
    torch.testing.assert_close(split(**padded(TEXTS)).logits, whole(**padded(TEXTS)).logits)
