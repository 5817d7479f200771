"""GGUF: what goes out comes back; what it cannot carry is refused by name."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.material import assert_same_bits, tiny_config, tiny_state, with_positions
from epilogue.checkpoint import WEIGHT_TYPES, export_gguf, load_checkpoint, load_config, load_tokenizer, save_checkpoint
from epilogue.checkpoint.gguf.architecture import gguf_name, name_from_gguf
from epilogue.checkpoint.gguf.file import GGUFFile
from epilogue.checkpoint.gguf.types import TENSOR_TYPES, TYPE_NAMED, decode, encode
from epilogue.checkpoint.inventory import wanted_shapes
from epilogue.errors import CheckpointError
from epilogue.model import AttentionConfig, MPTConfig
from epilogue.text import Tokenizer, train_tokenizer

TEXT = "The wind went round to the north in the night. “No,” said the keeper; don’t!  Naïve   café, 1899.\n\n" * 3
GROUPED = AttentionConfig(alibi=True, attn_type="grouped_query_attention", kv_n_heads=2)
SWITCHES = {
    "alibi": {},
    "slopes to 16 and a clamp": {"attn_config": AttentionConfig(alibi=True, alibi_bias_max=16, clip_qkv=6.0)},
    "learned positions": {"attn_config": AttentionConfig()},
    "no positions": {"attn_config": AttentionConfig(), "learned_pos_emb": False},
    "biases": {"no_bias": False},
    "one bias more": {"attention_bias": True},
    "one bias fewer": {"no_bias": False, "attention_bias": False},
    "grouped heads": {"attn_config": GROUPED},
    "one key head": {"attn_config": AttentionConfig(alibi=True, attn_type="multiquery_attention")},
    "a head of its own": {"tie_word_embeddings": False},
    "a broken ratio": {"expansion_ratio": 1.5, "norm_eps": 1e-6},
}
REFUSED = {
    "norm_type": {"norm_type": "rmsnorm"},
    "qk_gn": {"attn_config": AttentionConfig(alibi=True, qk_gn=True)},
    "qk_ln": {"attn_config": AttentionConfig(alibi=True, qk_ln=True)},
    "softmax_scale": {"attn_config": AttentionConfig(alibi=True, softmax_scale=0.5)},
    "logit_scale": {"logit_scale": "inv_sqrt_d_model"},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], vocab_size=280)


def saved(directory: Path, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    config = tiny_config(**{"vocab_size": 288, "d_model": 64} | changes)
    save_checkpoint(directory, tiny_state(config, dtype), config)
    tokenizer.save(directory)
    return directory


def essence(config: MPTConfig) -> MPTConfig:
    """What decides the arithmetic, in one spelling."""
    attention = config.attn_config
    is_grouped = config.kv_n_heads != config.n_heads
    return replace(
        config,
        norm_type="layernorm",
        learned_pos_emb=config.has_position_embedding,
        attention_bias=config.has_qkv_bias,
        extra={},
        attn_config=replace(
            attention,
            attn_type="grouped_query_attention" if is_grouped else "multihead_attention",
            kv_n_heads=config.kv_n_heads if is_grouped else None,
            alibi_bias_max=attention.alibi_bias_max if attention.alibi else 8,
        ),
    )


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES.keys())
def test_a_model_goes_out_and_comes_back(tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, object]) -> None:
    source, out = saved(tmp_path / "model", tokenizer, **changes), tmp_path / "model.gguf"
    export_gguf(source, out, weight_type="f32")
    there, back = load_checkpoint(source), load_checkpoint(out)
    assert essence(load_config(out)) == essence(back.config) == essence(there.config)
    assert_same_bits(back.model.state_dict(), there.model.state_dict())
    assert back.directory == out
    assert load_tokenizer(out, back.config).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_a_file_of_ours_written_again_is_the_same_file(tmp_path: Path, tokenizer: Tokenizer, weight_type: str) -> None:
    first, again = tmp_path / "model.gguf", tmp_path / "again.gguf"
    export_gguf(saved(tmp_path / "model", tokenizer), first, weight_type=weight_type)
    export_gguf(first, again, weight_type=weight_type)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(("word", "changes"), REFUSED.items(), ids=REFUSED.keys())
def test_what_it_has_no_place_for_is_named(
    tmp_path: Path, tokenizer: Tokenizer, word: str, changes: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError, match=f"the model has {word} = "):
        export_gguf(saved(tmp_path / "model", tokenizer, **changes), tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_norms_of_queries_and_keys_are_read(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs write them."""
    monkeypatch.setattr("epilogue.checkpoint.gguf_export.check_carried", lambda config: None)
    source = saved(tmp_path / "model", tokenizer, attn_config=AttentionConfig(alibi=True, qk_ln=True))
    export_gguf(source, tmp_path / "model.gguf", weight_type="f32")
    there, back = load_checkpoint(source), load_checkpoint(tmp_path / "model.gguf")
    assert back.config.attn_config.qk_ln
    assert_same_bits(back.model.state_dict(), there.model.state_dict())


def test_names_go_both_ways() -> None:
    config = tiny_config(no_bias=False, tie_word_embeddings=False, attn_config=AttentionConfig(qk_ln=True))
    for name in wanted_shapes(config):
        assert name_from_gguf(gguf_name(name)) == name
    assert name_from_gguf("blk.0.ffn.act.scales") == "blk.0.ffn.act.scales"


def test_names_are_those_of_the_gguf_package() -> None:
    arch = gguf.constants.MODEL_ARCH.MPT
    known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[arch]}
    for name in wanted_shapes(tiny_config(tie_word_embeddings=False, attn_config=AttentionConfig(qk_ln=True))):
        assert (
            gguf_name(name).removesuffix(".weight").replace("blk.0", "blk.{bid}").replace("blk.1", "blk.{bid}") in known
        )


def test_types_are_those_of_the_gguf_package() -> None:
    for type_ in TENSOR_TYPES.values():
        kind = gguf.GGMLQuantizationType(type_.number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (type_.name, (type_.block_weights, type_.block_bytes))


def test_llama_cpp_s_own_reader_sees_what_it_needs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    attention = AttentionConfig(alibi=True, alibi_bias_max=16, clip_qkv=6.0)
    out = tmp_path / "model.gguf"
    export_gguf(saved(tmp_path / "teller", tokenizer, attn_config=attention), out)
    reader = gguf.GGUFReader(out)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields["general.architecture"] == "mpt"
    assert fields["general.name"] == "teller"
    assert fields["mpt.attention.max_alibi_bias"] == 16.0
    assert fields["mpt.attention.clamp_kqv"] == 6.0
    assert fields["mpt.feed_forward_length"] == 128
    assert fields["tokenizer.ggml.pre"] == "mpt"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == 288
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD287]"
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_qkv.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert "output.weight" not in types


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_packed_weights_are_the_reference_s_to_the_bit(name: str) -> None:
    weights, type_ = torch.randn(7, 96), TYPE_NAMED[name]
    packed = np.concatenate(list(encode("w", weights, type_)))
    kind = gguf.GGMLQuantizationType(type_.number)
    wanted = gguf.quants.quantize(weights.numpy(), kind)
    assert np.array_equal(packed, wanted)
    values = decode(wanted.reshape(-1), type_, (7, 96))
    assert torch.equal(values, torch.from_numpy(gguf.quants.dequantize(wanted, kind)))
    step = weights.abs().amax() / (127 if name == "Q8_0" else 7)
    assert (values - weights).abs().max() <= step


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_unpacked(name: str) -> None:
    type_ = TYPE_NAMED[name]
    raw = np.random.default_rng(0).integers(0, 60, 3 * 2 * type_.block_bytes, dtype=np.uint8)
    values = decode(raw, type_, (3, 512))
    wanted = gguf.quants.dequantize(raw.reshape(3, -1), gguf.GGMLQuantizationType(type_.number))
    assert torch.equal(values, torch.from_numpy(wanted))
    assert values.std() > 0


def test_a_large_tensor_is_packed_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, type_ = torch.randn(63, 64), TYPE_NAMED["Q4_0"]
    whole = np.concatenate(list(encode("w", weights, type_)))
    monkeypatch.setattr("epilogue.checkpoint.gguf.types._CHUNK_WEIGHTS", 200)
    parts = list(encode("w", weights, type_))
    assert len(parts) == 21
    assert np.array_equal(np.concatenate(parts), whole)
    assert torch.equal(decode(whole.reshape(-1), type_, (63, 64)), decode(whole.reshape(-1), type_, (63, 64)))


def test_rows_that_do_not_divide_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = saved(tmp_path / "model", tokenizer, d_model=48, n_heads=3)
    with pytest.raises(CheckpointError, match="rows of 48 weights and Q8_0 packs 32"):
        export_gguf(source, tmp_path / "model.gguf", weight_type="q8_0")


def test_weights_too_large_for_f16_are_refused_and_leave_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = tiny_config(vocab_size=288)
    state = tiny_state(config)
    state["transformer.wte.weight"][3, 3] = 1e5
    save_checkpoint(tmp_path / "model", state, config)
    tokenizer.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16"):
        export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", weight_type="bf16")


def test_a_disk_that_changes_bytes_is_noticed(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "model", tokenizer)

    class Failing(GGUFFile):
        def raw(self, name: str) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
            return super().raw(name) ^ np.uint8(name == "blk.1.ffn_up.weight")

    monkeypatch.setattr("epilogue.checkpoint.gguf_export.GGUFFile", Failing)
    with pytest.raises(CheckpointError, match="reads back differently"):
        export_gguf(source, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_another_weight_type_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weight_type"):
        export_gguf(tmp_path, tmp_path / "x.gguf", weight_type="q3_k")


def test_positions_can_be_shortened_from_a_gguf(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = replace(with_positions(), vocab_size=288)
    save_checkpoint(tmp_path / "model", tiny_state(config), config)
    tokenizer.save(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf")
    assert load_checkpoint(tmp_path / "model.gguf", max_seq_len=8).model.transformer.wpe.weight.shape == (8, 16)


@pytest.mark.parametrize("is_described", [True, False], ids=["tokenizer.json inside", "tokens and merges alone"])
def test_the_tokenizer_comes_back(tmp_path: Path, tokenizer: Tokenizer, is_described: bool) -> None:
    out = tmp_path / "model.gguf"
    export_gguf(saved(tmp_path / "model", tokenizer), out)
    if not is_described:  # as in files of other programs
        content = out.read_bytes()
        out.write_bytes(content.replace(b"tokenizer.huggingface.json", b"tokenizer.something_else.x"))
    back = load_tokenizer(out, load_config(out))
    assert (back.fingerprint == tokenizer.fingerprint) == is_described
    assert back.eos_id == tokenizer.eos_id
    assert [back.token_bytes(i) for i in range(300)] == [tokenizer.token_bytes(i) for i in range(300)]
    for text in (TEXT, " \n\t x", "<|endoftext|>", "żółć 日本語"):
        assert back.encode(text) == tokenizer.encode(text)


def test_a_tokenizer_that_cuts_otherwise_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = saved(tmp_path / "model", tokenizer)
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace('"use_regex": true', '"use_regex": false'))
    with pytest.raises(CheckpointError, match="cuts words otherwise"):
        export_gguf(source, tmp_path / "model.gguf")


@given(st.text())
def test_any_text_has_the_same_ids_after_a_round_trip(text: str) -> None:
    tokenizer, back = _pair()
    assert back.encode(text) == tokenizer.encode(text)


def _pair() -> tuple[Tokenizer, Tokenizer]:
    from epilogue.checkpoint.gguf.vocabulary import tokenizer_from_metadata, tokenizer_to_metadata

    if not hasattr(_pair, "made"):
        tokenizer = train_tokenizer([TEXT], vocab_size=280)
        metadata = tokenizer_to_metadata(tokenizer, 288)
        del metadata["tokenizer.huggingface.json"]
        _pair.made = tokenizer, tokenizer_from_metadata(metadata, where="here")  # type: ignore[attr-defined]
    return _pair.made  # type: ignore[attr-defined,no-any-return]
