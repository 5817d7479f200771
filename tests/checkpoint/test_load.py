"""load_checkpoint: every layout gives the same model; whatever does not fit is one sentence."""

import datetime
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoint.material import (
    LAYOUTS,
    QKV,
    WTE,
    assert_same_bits,
    tiny_config,
    tiny_state,
    with_positions,
    write_config,
    write_layout,
)
from epilogue.checkpoint import load_checkpoint
from epilogue.checkpoint.huggingface import own_name
from epilogue.errors import CheckpointError
from epilogue.model import alibi_slopes

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bits(tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    state = tiny_state(tiny_config(), dtype)
    checkpoint = load_checkpoint(write_layout(tmp_path, tiny_config(), state, layout=layout))
    assert_same_bits(checkpoint.model.state_dict(), state)
    assert checkpoint.dtype == checkpoint.model.dtype == dtype
    assert checkpoint.directory == tmp_path


def test_a_composer_checkpoint_with_all_that_lies_in_one(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    write_config(tmp_path, tiny_config())
    content = {
        "state": {
            "model": {f"model.{name}": tensor for name, tensor in state.items()},
            "optimizers": {"DecoupledLionW": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
            "timestamp": {"Timestamp": {"iteration": 2, "total_wct": datetime.timedelta(seconds=5)}},
        },
        "rng": [{"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}],
    }
    torch.save(content, tmp_path / "ep0-ba2-rank0.pt")
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), state)


def test_the_model_is_ready_to_read(tmp_path: Path) -> None:
    config = tiny_config()
    state = tiny_state(config, torch.bfloat16)
    model = load_checkpoint(write_layout(tmp_path, config, state, layout="safetensors")).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    slopes_H = model.transformer.blocks[0].attn.slopes_H
    assert slopes_H.dtype == torch.float32
    assert torch.equal(slopes_H, alibi_slopes(4, 8))
    assert "lm_head.weight" not in model.state_dict()
    assert torch.isfinite(model(torch.arange(9)[None])).all()


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["safetensors", "bin shards"])
def test_the_model_goes_to_its_device(tmp_path: Path, layout: str) -> None:
    state = tiny_state(tiny_config(), torch.bfloat16)
    write_layout(tmp_path, tiny_config(), state | {"lm_head.weight": state[WTE].clone()}, layout=layout)
    model = load_checkpoint(tmp_path, device="cuda").model
    assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert torch.equal(model.transformer.blocks[0].attn.slopes_H.cpu(), alibi_slopes(4, 8))
    assert_same_bits({name: x.cpu() for name, x in model.state_dict().items()}, state)


def test_the_model_does_not_depend_on_its_files(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    model = load_checkpoint(write_layout(tmp_path, tiny_config(), state, layout="safetensors")).model
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:  # in place, so that a mapping would see it
        stream.seek(0)
        stream.write(b"\0" * file.stat().st_size)
    assert_same_bits(model.state_dict(), state)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_conversion_rounds_once(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    state = tiny_state(tiny_config(), stored)
    write_layout(tmp_path, tiny_config(), state, layout="safetensors")
    checkpoint = load_checkpoint(tmp_path, dtype=wanted)
    assert checkpoint.dtype == wanted
    assert_same_bits(checkpoint.model.state_dict(), {name: x.to(wanted) for name, x in state.items()})


def test_of_mixed_dtypes_the_one_of_most_values_is_taken(tmp_path: Path) -> None:
    state = tiny_state(tiny_config(), torch.bfloat16)
    mixed = {name: x.float() if "norm" in name else x for name, x in state.items()}
    checkpoint = load_checkpoint(write_layout(tmp_path, tiny_config(), mixed, layout="safetensors"))
    assert_same_bits(checkpoint.model.state_dict(), state)


def test_a_value_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    state[QKV][0, 0] = 1e5
    write_layout(tmp_path, tiny_config(), state, layout="bin")
    with pytest.raises(CheckpointError, match=rf"{QKV} of .* too large for torch.float16; choose bfloat16"):
        load_checkpoint(tmp_path, dtype=torch.float16)
    assert load_checkpoint(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_infinities_that_are_stored_are_kept(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    state[QKV][0, :2] = torch.tensor([float("inf"), float("nan")])
    write_layout(tmp_path, tiny_config(), state, layout="bin")
    loaded = load_checkpoint(tmp_path, dtype=torch.float16).model.state_dict()
    assert_same_bits(loaded, {name: x.half() for name, x in state.items()})


def test_a_dtype_that_is_none_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype must be .* got torch.int8"):
        load_checkpoint(tmp_path, dtype=torch.int8)


def test_strided_and_shared_tensors_become_plain(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    odd = state | {QKV: state[QKV].t().contiguous().t()}
    model = load_checkpoint(write_layout(tmp_path, tiny_config(), odd, layout="bin")).model
    assert all(p.is_contiguous() for p in model.parameters())
    assert_same_bits(model.state_dict(), state)


# Names and shapes


def test_all_departures_are_one_sentence(tmp_path: Path) -> None:
    state = tiny_state(tiny_config(n_layers=6))
    missing = [name for name in state if "ffn" in name]
    broken = {name: x for name, x in state.items() if name not in missing}
    broken[QKV] = broken[QKV][:5].clone()
    broken["transformer.extra.weight"] = torch.ones(2)
    write_layout(tmp_path, tiny_config(n_layers=6), broken, layout="safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    message = str(caught.value)
    assert f"missing: {', '.join(missing[:8])}, and 4 more;" in message
    assert "unknown: transformer.extra.weight;" in message
    assert f"misshapen: {QKV} is [5, 16] and should be [48, 16]" in message
    assert "repeated" not in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_a_tensor_given_twice_is_refused(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    write_layout(tmp_path, tiny_config(), state | {f"model.{QKV}": state[QKV]}, layout="bin")
    with pytest.raises(CheckpointError, match=rf"repeated: model.{QKV}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.float8_e4m3fn])
def test_tensors_that_are_no_floats_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    state = tiny_state(tiny_config())
    state[QKV] = torch.zeros(48, 16).to(dtype)
    write_layout(tmp_path, tiny_config(), state, layout="safetensors")
    with pytest.raises(CheckpointError, match=rf"{QKV} of .* neither a float nor a part of a quantised layer"):
        load_checkpoint(tmp_path)


def test_codes_that_the_config_says_nothing_about_are_named(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    name = "transformer.blocks.0.attn.Wqkv.qweight"
    write_layout(tmp_path, tiny_config(), state | {name: torch.zeros(2, 2).int()}, layout="safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} of .* the config.json there says nothing about it"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("odd", [torch.empty(48, 16, device="meta"), torch.eye(48, 16).to_sparse()])
def test_tensors_without_dense_values_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    write_layout(tmp_path, tiny_config(), tiny_state(tiny_config()) | {QKV: odd}, layout="bin")
    with pytest.raises(CheckpointError, match=rf"{QKV} of .* no dense values"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["safetensors", "bin shards"])
def test_buffers_of_others_are_dropped(tmp_path: Path, layout: str) -> None:
    state = tiny_state(tiny_config())
    buffers = {
        "transformer.attn_bias": torch.zeros(1, 4, 1, 32),
        "transformer.blocks.0.attn.attn_bias": torch.zeros(3, dtype=torch.bool),
        "transformer.position_ids": torch.arange(5),
    }
    write_layout(tmp_path, tiny_config(), buffers | state, layout=layout)
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), state)


WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@given(st.data())
def test_wrapped_names_are_ours(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([WTE, QKV, "transformer.norm_f.weight", "transformer.blocks.11.norm_2.bias"]))
    parts = name.split(".")
    if data.draw(st.booleans(), label="bare"):
        parts = parts[1:]
    for _ in range(data.draw(st.integers(0, 3))):
        parts.insert(data.draw(st.integers(0, len(parts) - 1)), data.draw(st.sampled_from(WRAPPERS)))
    parts = data.draw(st.lists(st.sampled_from(["model", "module"]), max_size=3)) + parts
    assert own_name(".".join(parts), is_tied=True) == name
    assert own_name(name, is_tied=False) == name


def test_a_grouped_norm_is_unwrapped() -> None:
    grouped = "transformer.blocks.3.norm_attn_norm.attn.Wqkv.weight"
    assert own_name(grouped, is_tied=True) == "transformer.blocks.3.attn.Wqkv.weight"


# The head


@pytest.mark.parametrize("head_first", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tied_head_that_is_stored_is_dropped(tmp_path: Path, layout: str, *, head_first: bool) -> None:
    state = tiny_state(tiny_config())
    head = {"lm_head.weight": state[WTE].clone()}
    stored = head | state if head_first else state | head
    write_layout(tmp_path, tiny_config(), stored, layout=layout)
    loaded = load_checkpoint(tmp_path, dtype=torch.bfloat16).model.state_dict()
    assert_same_bits(loaded, {name: x.bfloat16() for name, x in state.items()})


def test_a_tied_head_without_the_embedding_is_the_embedding(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    stored = {name.replace(WTE, "lm_head.weight"): x for name, x in state.items()}
    write_layout(tmp_path, tiny_config(), stored, layout="safetensors")
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), state)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_tied_head_that_differs_is_a_contradiction(tmp_path: Path, layout: str) -> None:
    state = tiny_state(tiny_config())
    other = state[WTE].clone()
    other[3, 4] += 1
    write_layout(tmp_path, tiny_config(), state | {"lm_head.weight": other}, layout=layout)
    with pytest.raises(CheckpointError, match=r"lm_head.weight of .* differs .* tie_word_embeddings = true; set it to"):
        load_checkpoint(tmp_path)


def test_an_untied_head_is_a_weight(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=False)
    state = tiny_state(config)
    model = load_checkpoint(write_layout(tmp_path, config, state, layout="bin shards")).model
    assert "lm_head.weight" in state
    assert_same_bits(model.state_dict(), state)
    del state["lm_head.weight"]
    write_layout(tmp_path, config, state, layout="bin")
    with pytest.raises(CheckpointError, match=r"missing: lm_head.weight"):
        load_checkpoint(tmp_path)


# Length


def test_max_seq_len_replaces_the_configs(tmp_path: Path) -> None:
    write_layout(tmp_path, tiny_config(), tiny_state(tiny_config()), layout="safetensors")
    checkpoint = load_checkpoint(tmp_path, max_seq_len=4096)
    assert checkpoint.config == checkpoint.model.config
    assert checkpoint.config.max_seq_len == 4096
    with pytest.raises(ValueError, match="max_seq_len must be at least 1"):
        load_checkpoint(tmp_path, max_seq_len=0)


def test_learned_positions_get_shorter_only(tmp_path: Path) -> None:
    state = tiny_state(with_positions())
    write_layout(tmp_path, with_positions(), state, layout="safetensors")
    whole, short = load_checkpoint(tmp_path).model, load_checkpoint(tmp_path, max_seq_len=7).model
    ids = torch.arange(7)[None]
    assert torch.equal(whole(ids), short(ids))
    assert short.transformer.wpe.weight.shape == (7, 16)
    with pytest.raises(CheckpointError, match="learned positions for 32 tokens and max_seq_len 33 was asked for"):
        load_checkpoint(tmp_path, max_seq_len=33)


def test_an_odd_architecture(tmp_path: Path) -> None:
    config = with_positions(11)
    biased = tiny_config(no_bias=False, tie_word_embeddings=False, norm_type="rmsnorm")
    for i, each in enumerate((config, biased)):
        state = tiny_state(each)
        write_layout(tmp_path / str(i), each, state, layout="safetensors shards")
        assert_same_bits(load_checkpoint(tmp_path / str(i)).model.state_dict(), state)


def test_an_index_says_which_copy_counts(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    write_layout(tmp_path, tiny_config(), state, layout="safetensors shards")
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {WTE: torch.zeros(24, 16)}, second)
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), state)
