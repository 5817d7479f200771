"""A checkpoint quantised block by block: what is written, what is reported, and what an interruption leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.material import tiny_config, tiny_state
from epilogue.checkpoint import load_checkpoint, save_checkpoint
from epilogue.checkpoint.files import read_tensors
from epilogue.errors import BookError, CheckpointError
from epilogue.evals import token_losses
from epilogue.model import MPT, AttentionConfig, MPTConfig, QuantLinear
from epilogue.quant import HeldOut, Job, LayerReport, Scheme, book_samples, quantise_checkpoint
from epilogue.text import Tokenizer, train_tokenizer


def small(**changes: object) -> MPTConfig:
    return tiny_config(**({"d_model": 64, "vocab_size": 40, "max_seq_len": 64} | changes))


def save(directory: Path, config: MPTConfig) -> Path:
    save_checkpoint(directory, tiny_state(config), config)
    return directory


def job(tmp_path: Path, config: MPTConfig | None = None, **changes: Any) -> Job:
    source = tmp_path / "dense"
    if not source.exists():
        save(source, config or small())
    torch.manual_seed(1)
    calibration = [torch.randint(40, (n,)).tolist() for n in (50, 63, 2)]
    held_out = HeldOut([torch.randint(40, (n,)).tolist() for n in (40, 7)], 100)
    made = Job(
        source=source, out=tmp_path / "out", scheme=Scheme(group_size=16), calibration=calibration, held_out=held_out
    )
    return replace(made, **changes)


CONFIGS = [
    small(),
    small(no_bias=False, tie_word_embeddings=False, logit_scale=0.5),
    small(attn_config=AttentionConfig(alibi=False)),
    small(attn_config=AttentionConfig(alibi=True, clip_qkv=0.5, qk_ln=True)),
    small(attn_config=AttentionConfig(alibi=True, attn_type="multiquery_attention")),
]


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_report_is_what_the_models_do(tmp_path: Path, config: MPTConfig, method: Any) -> None:
    """Bits per byte, measured block by block, are those of the two models when they are loaded."""
    work = job(tmp_path, config, method=method)
    report = quantise_checkpoint(work)
    for directory, bits in ((work.source, report.dense_bits_per_byte), (work.out, report.quantised_bits_per_byte)):
        model = load_checkpoint(directory, dtype=torch.float32).model
        nats = sum(token_losses(model, ids).double().sum().item() for ids in work.held_out.samples)
        assert bits == pytest.approx(nats / 100 / 0.6931471805599453, rel=1e-5)
    assert len(report.layers) == 8
    assert not work.workplace.exists()
    told = json.loads((work.out / "quantization_report.json").read_text())
    assert told["method"] == method
    assert told["quantised_bits_per_byte"] == report.quantised_bits_per_byte


def test_the_result_says_what_it_is(tmp_path: Path) -> None:
    work = job(tmp_path, scheme=Scheme(bits=8, group_size=-1, is_symmetric=False, has_act_order=True))
    quantise_checkpoint(work)
    said = json.loads((work.out / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "gptq"
    assert (said["bits"], said["group_size"], said["desc_act"], said["sym"]) == (8, -1, True, False)
    dense, made = load_checkpoint(work.source).model, load_checkpoint(work.out).model
    state = dense.state_dict()
    for name, module in made.named_modules():
        if isinstance(module, QuantLinear):
            state.pop(f"{name}.weight")
    kept = made.state_dict()
    for name, tensor in state.items():
        assert torch.equal(kept[name], tensor), name


def test_gptq_beats_rounding_on_what_it_saw(tmp_path: Path) -> None:
    for layer in quantise_checkpoint(job(tmp_path)).layers:
        assert layer.error < layer.error_nearest


def interrupted(work: Job, after: int) -> None:
    seen = 0

    def on_layer(report: LayerReport) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_checkpoint(work, on_layer=on_layer)


@pytest.mark.parametrize("after", [1, 3, 4, 6])
def test_an_interrupted_run_comes_to_the_same_bits(tmp_path: Path, after: int) -> None:
    whole = job(tmp_path, out=tmp_path / "whole")
    expected = quantise_checkpoint(whole)
    work = job(tmp_path)
    interrupted(work, after)
    assert not work.out.exists()
    starts: list[tuple[int, int]] = []
    report = quantise_checkpoint(work, on_start=lambda done, total: starts.append((done, total)))
    assert starts == [(1 if after > 4 else 0, 2)]
    assert report.quantised_bits_per_byte == expected.quantised_bits_per_byte
    assert [layer.error for layer in report.layers] == [layer.error for layer in expected.layers]
    one, other = dict(read_tensors(whole.out)), dict(read_tensors(work.out))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_unfinished_work_of_another_job_is_left_alone(tmp_path: Path) -> None:
    work = job(tmp_path)
    interrupted(work, 5)
    with pytest.raises(CheckpointError, match=r"out.partial holds unfinished work of another model, other settings"):
        quantise_checkpoint(replace(work, scheme=Scheme(group_size=32)))
    quantise_checkpoint(work)


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out exists already"):
        quantise_checkpoint(job(tmp_path))


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    work = job(tmp_path)
    quantise_checkpoint(work)
    with pytest.raises(CheckpointError, match="is quantised already"):
        quantise_checkpoint(replace(work, source=work.out, out=tmp_path / "again"))


def test_widths_that_fill_no_words(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not all divide by 8"):
        quantise_checkpoint(job(tmp_path, small(d_model=60)))


def test_shards_and_pickles_are_read_in_parts(tmp_path: Path) -> None:
    config, state = small(), tiny_state(small())
    whole = job(tmp_path, out=tmp_path / "whole")
    quantise_checkpoint(whole)
    sharded = tmp_path / "sharded"
    save_checkpoint(
        sharded,
        {name: load_checkpoint(whole.source).model.state_dict()[name] for name in state},
        config,
        max_shard_bytes=20_000,
    )
    assert len(list(sharded.glob("*.safetensors"))) > 3
    work = replace(whole, source=sharded, out=tmp_path / "out")
    quantise_checkpoint(work)
    one, other = dict(read_tensors(whole.out)), dict(read_tensors(work.out))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_calibration_sees_the_bias(tmp_path: Path) -> None:
    """With slopes the second layer of a block sees other inputs than without: the error reported is another one."""
    biased = quantise_checkpoint(job(tmp_path / "a", small()))
    plain = quantise_checkpoint(job(tmp_path / "b", small(learned_pos_emb=False, attn_config=AttentionConfig())))
    assert biased.layers[0].error == plain.layers[0].error
    assert biased.layers[1].error != plain.layers[1].error


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a book of words and words of a book. " * 30], vocab_size=270)


def test_samples_begin_where_books_do(tokenizer: Tokenizer) -> None:
    books = ["words of a book and " * 40, "", "a", "of a book. " * 30]
    ids = [tokenizer.encode(book) for book in books]
    assert book_samples(tokenizer, books, num_samples=2, sequence_tokens=20) == [ids[0][:20], ids[3][:20]]
    more = book_samples(tokenizer, books, num_samples=100, sequence_tokens=20)
    assert more[:2] == [ids[0][:20], ids[3][:20]]
    assert more[2] == ids[0][20:40]
    assert all(10 <= len(sample) <= 20 for sample in more)


def test_no_more_books_are_read_than_it_takes(tokenizer: Tokenizer) -> None:
    def books() -> Any:
        yield "words and words"
        raise AssertionError

    assert len(book_samples(tokenizer, books(), num_samples=1, sequence_tokens=20)) == 1


def test_no_text_to_calibrate_on(tokenizer: Tokenizer) -> None:
    with pytest.raises(BookError, match="longer books"):
        book_samples(tokenizer, ["", "a"], num_samples=2, sequence_tokens=20)


def test_a_quantised_model_is_an_ordinary_one(tmp_path: Path) -> None:
    work = job(tmp_path)
    quantise_checkpoint(work)
    model = load_checkpoint(work.out, dtype=torch.bfloat16).model
    assert isinstance(model, MPT)
    assert model(torch.arange(30)[None]).isfinite().all()
