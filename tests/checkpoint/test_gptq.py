"""Quantised checkpoints: every layout gives its weights to the bit; whatever is wrong or hostile is one sentence."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint.material import tiny_state, write_config
from checkpoint.quantised_material import quant_config, quantised_state, write_quantised
from epilogue.checkpoint import load_checkpoint, load_config
from epilogue.errors import CheckpointError
from epilogue.model import MPT, QuantLinear, eviction_bounds

QKV = "transformer.blocks.0.attn.Wqkv"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
KOBOLD = {"gptq_bits": 4, "gptq_groupsize": 16}


def assert_gives(directory: Path, weights: dict[str, torch.Tensor]) -> MPT:
    checkpoint = load_checkpoint(directory, dtype=torch.float32)
    modules = dict(checkpoint.model.named_modules())
    for name, weight in weights.items():
        module = modules[name.removesuffix(".weight")]
        assert isinstance(module, QuantLinear)
        assert torch.equal(module.weight, weight.float()), name
    assert checkpoint.model(torch.arange(9)[None]).isfinite().all()
    return checkpoint.model


CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("kobold-0", "4bit.pt", {}, {}),
    ("kobold-0", "model.safetensors", {}, {"gptq_bits": 4, "gptq_version": 0}),
    ("kobold-1", "4bit-16g.safetensors", {}, {}),
    ("kobold-1", "4bit-16g.pt", {}, KOBOLD | {"gptq_version": 1}),
    ("kobold-1", "model.safetensors", {}, KOBOLD),
    ("kobold-1", "model.safetensors", {"group": -1}, {"gptq_bits": 4}),
    ("gptq", "4bit-16g.safetensors", {}, {}),
    ("gptq", "model.safetensors", {}, KOBOLD),  # no version, which the fork would read as 1
    ("gptq", "model.safetensors", {"has_order": True}, KOBOLD | {"gptq_version": 2}),
    ("gptq", "pytorch_model.bin", {"bits": 8}, {"quantization_config": GPTQ | {"bits": 8}}),
    ("gptq", "model.safetensors", {"has_order": True}, {"quantization_config": GPTQ | {"desc_act": True}}),
    ("gptq", "model.safetensors", {"is_symmetric": True}, {"quantization_config": GPTQ | {"sym": True}}),
    ("gptq", "model.safetensors", {"group": -1}, {"quantization_config": GPTQ | {"group_size": -1}}),
    ("gptq_v2", "model.safetensors", {}, {"quantization_config": GPTQ | {"checkpoint_format": "gptq_v2"}}),
    ("gptq_v2", "model.safetensors", {"has_order": True}, {"quantization_config": GPTQ | {"format": "gptq_v2"}}),
    ("gptq", "gptq_model-4bit-16g.safetensors", {}, {}),
]


@pytest.mark.parametrize(("layout", "name", "options", "said"), CASES)
def test_every_layout_gives_its_weights_to_the_bit(
    tmp_path: Path, layout: str, name: str, options: dict[str, Any], said: dict[str, Any]
) -> None:
    stored, weights = quantised_state(quant_config(), layout, **options)
    model = assert_gives(write_quantised(tmp_path, stored, quant_config(), name=name, **said), weights)
    assert torch.equal(model.transformer.wte.weight, stored["transformer.wte.weight"].float())


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_the_config_may_stand_beside(tmp_path: Path, name: str) -> None:
    stored, weights = quantised_state(quant_config(), "gptq_v2")
    write_quantised(tmp_path, stored, quant_config())
    (tmp_path / name).write_text(json.dumps(GPTQ | {"method": "gptq", "format": "gptq_v2"}))
    assert_gives(tmp_path, weights)


def test_an_odd_group_at_the_end(tmp_path: Path) -> None:
    stored, weights = quantised_state(quant_config(), "gptq", group=20)
    said = {"quantization_config": GPTQ | {"group_size": 20}}
    assert_gives(write_quantised(tmp_path, stored, quant_config(), **said), weights)


def test_biases_of_zero_are_dropped_and_others_kept(tmp_path: Path) -> None:
    config = quant_config(no_bias=False)
    stored, _ = quantised_state(config, "kobold-1")
    stored[f"{QKV}.bias"] = torch.ones(96)
    said = {"quantization_config": None} | KOBOLD
    model = load_checkpoint(write_quantised(tmp_path / "biased", stored, config, **said)).model
    assert model.transformer.blocks[0].attn.Wqkv.bias.tolist() == [1.0] * 96

    stored, _ = quantised_state(quant_config(), "kobold-1")
    stored[f"{QKV}.bias"][3] = 0.5
    with pytest.raises(CheckpointError, match=rf"unknown: {QKV}.bias"):
        load_checkpoint(write_quantised(tmp_path / "spare", stored, quant_config(), **KOBOLD))


def test_the_model_behaves_as_one_of_its_dense_weights(tmp_path: Path) -> None:
    config = quant_config()
    stored, weights = quantised_state(config, "gptq", has_order=True)
    write_quantised(tmp_path, stored, config, quantization_config=GPTQ)
    model = load_checkpoint(tmp_path, dtype=torch.float64).model
    twin = MPT(config).double()
    twin.load_state_dict(
        {name: x.double() for name, x in stored.items() if "blocks" not in name or "norm" in name} | weights
    )
    ids = torch.randint(24, (2, 30))
    torch.testing.assert_close(model(ids), twin(ids), rtol=1e-12, atol=1e-12)
    ours, theirs = eviction_bounds(model, "float32"), eviction_bounds(twin, "float32")
    torch.testing.assert_close(ours.floor_LH, theirs.floor_LH)
    torch.testing.assert_close(ours.largest_LH, theirs.largest_LH)


def test_scales_do_not_follow_the_models_dtype(tmp_path: Path) -> None:
    stored, weights = quantised_state(quant_config(), "gptq")
    write_quantised(tmp_path, stored, quant_config(), quantization_config=GPTQ)
    model = load_checkpoint(tmp_path, dtype=torch.bfloat16).model
    layer = model.transformer.blocks[0].attn.Wqkv
    assert layer.scales_OG.dtype == torch.float16
    assert torch.equal(layer.weight, weights[f"{QKV}.weight"].float().bfloat16())
    assert torch.equal(model.double().transformer.blocks[0].attn.Wqkv.weight, weights[f"{QKV}.weight"])


# Contradictions


@pytest.mark.parametrize(
    ("layout", "options", "said", "message"),
    [
        ("gptq", {}, {"quantization_config": GPTQ | {"bits": 8}}, "says 8 bits and .* has 4"),
        ("gptq", {}, {"quantization_config": GPTQ | {"group_size": 8}}, "says groups of 8.* the tensors have"),
        ("gptq", {}, KOBOLD | {"gptq_version": 1}, "says the layout kobold-1.* are those of gptq"),
        ("kobold-1", {}, KOBOLD | {"gptq_version": 2}, "says the layout gptq, .* are those of kobold-1"),
        ("kobold-0", {}, KOBOLD | {"gptq_version": 1}, "are those of kobold-0"),
        ("kobold-1", {}, {"quantization_config": GPTQ}, "says the layout gptq, .* are those of kobold-1"),
        (
            "gptq_v2",
            {"is_symmetric": True},
            {"quantization_config": GPTQ | {"sym": True}},
            "sym = true and the layout gptq, .* should be 8, and they go from 9 to 9",
        ),
        (
            "gptq",
            {"is_symmetric": True},
            {"quantization_config": GPTQ | {"sym": True, "checkpoint_format": "gptq_v2"}},
            "from 7 to 7",
        ),
        ("gptq", {}, {"quantization_config": GPTQ} | KOBOLD | {"gptq_bits": 8}, "says two things"),
        ("gptq", {}, {"quantization_config": GPTQ | {"quant_method": "awq"}}, "quant_method = 'awq'"),
        ("gptq", {}, {"quantization_config": GPTQ | {"bits": 3}}, "weights of 3 bits"),
        ("gptq", {}, {"quantization_config": GPTQ | {"bits": "4"}}, "bits = '4'; wanted a whole number"),
        ("gptq", {}, {"quantization_config": GPTQ | {"lm_head": True}}, "lm_head = True"),
        ("gptq", {}, {"quantization_config": GPTQ | {"checkpoint_format": "marlin"}}, "checkpoint_format = 'marlin'"),
        ("gptq", {}, {"quantization_config": GPTQ | {"group_size": -5}}, "group size -5"),
        ("gptq", {}, {"quantization_config": [4]}, "wanted a table"),
        ("gptq", {}, {"gptq_groupsize": 16}, "no gptq_bits"),
        ("gptq", {}, {"gptq_bits": 4, "gptq_version": 3}, "known are 0, 1 and 2"),
    ],
)
def test_a_contradiction_names_both(
    tmp_path: Path, layout: str, options: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    stored, _ = quantised_state(quant_config(), layout, **options)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(write_quantised(tmp_path, stored, quant_config(), **said))
    assert "\n" not in str(caught.value)


def test_dense_weights_under_a_quantised_config(tmp_path: Path) -> None:
    write_quantised(tmp_path, tiny_state(quant_config()), quant_config(), quantization_config=GPTQ)
    with pytest.raises(CheckpointError, match="says weights of 4 bits, and no tensor there has codes"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("leaf", "tensor", "message"),
    [
        ("qweight", torch.zeros(5, 96, dtype=torch.int32), "4 or 8 bits were wanted"),
        ("qweight", torch.zeros(4, 96), "is torch.float32; int32 were wanted"),
        ("qweight", torch.zeros(0, dtype=torch.int32), "4 or 8 bits were wanted"),
        ("scales", torch.zeros(2, 95), "a scale for each"),
        ("scales", torch.zeros(2, 96, dtype=torch.int32), "floats were wanted"),
        ("qzeros", torch.zeros(2, 11, dtype=torch.int32), r"should be \[2, 12\]"),
        ("qzeros", None, "lacks qzeros"),
        ("g_idx", torch.full((32,), 2**30, dtype=torch.int32), "does not put 16 inputs into each"),
        ("g_idx", torch.zeros(32, dtype=torch.int32), "does not put 16 inputs into each"),
        ("g_idx", torch.zeros(31, dtype=torch.int32), r"should be \[32\]"),
    ],
)
def test_a_layer_that_does_not_fit(tmp_path: Path, leaf: str, tensor: torch.Tensor | None, message: str) -> None:
    stored, _ = quantised_state(quant_config(), "gptq")
    del stored[f"{QKV}.{leaf}"]
    if tensor is not None:
        stored[f"{QKV}.{leaf}"] = tensor
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write_quantised(tmp_path, stored, quant_config(), quantization_config=GPTQ))


def test_float_zero_points_that_are_no_codes(tmp_path: Path) -> None:
    stored, _ = quantised_state(quant_config(), "kobold-0")
    stored[f"{QKV}.zeros"][3] *= 1.3
    with pytest.raises(CheckpointError, match="are no codes from 0 to 16"):
        load_checkpoint(write_quantised(tmp_path, stored, quant_config(), gptq_bits=4))


def test_a_missing_layer_is_missing(tmp_path: Path) -> None:
    stored, _ = quantised_state(quant_config(), "gptq")
    kept = {name: x for name, x in stored.items() if not name.startswith(QKV)}
    with pytest.raises(CheckpointError, match=rf"missing: {QKV}.qweight"):
        load_checkpoint(write_quantised(tmp_path, kept, quant_config(), quantization_config=GPTQ))


# Hostile files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_with_code_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, quant_config())
    (tmp_path / "4bit-16g.pt").write_bytes(pickle.dumps({f"{QKV}.qweight": Bomb()}, protocol=2))
    with pytest.raises(CheckpointError, match="because a pickle can run code"):
        load_checkpoint(tmp_path)
    torch.save({f"{QKV}.qweight": Bomb()}, tmp_path / "4bit-16g.pt")
    with pytest.raises(CheckpointError, match="because a pickle can run code"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 10 * 2**30) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        b"\x02",
        *(
            struct.pack("<Q", len(header)) + header
            for header in (
                b'{"x.qweight":{"dtype":"I32","shape":[-4,96],"data_offsets":[0,4]}}',
                b'{"x.qweight":{"dtype":"I32","shape":[9223372036854775807,8],"data_offsets":[0,4]}}',
                b'{"x.qweight":{"dtype":"I32","shape":[1],"data_offsets":[4,0]}}',
            )
        ),
    ],
)
def test_a_hostile_safetensors_header(tmp_path: Path, content: bytes) -> None:
    write_config(tmp_path, quant_config(), quantization_config=GPTQ)
    (tmp_path / "4bit-16g.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or incomplete"):
        load_checkpoint(tmp_path)


def test_paths_in_a_config_are_not_followed(tmp_path: Path) -> None:
    stored, weights = quantised_state(quant_config(), "gptq")
    elsewhere = {"model_file_base_name": "../../etc/passwd", "model_name_or_path": "/etc", "dataset": ["/etc/passwd"]}
    assert_gives(write_quantised(tmp_path, stored, quant_config(), quantization_config=GPTQ | elsewhere), weights)


def test_several_files_are_a_question(tmp_path: Path) -> None:
    stored, _ = quantised_state(quant_config(), "gptq")
    for name in ("4bit-16g.safetensors", "4bit.safetensors"):
        write_quantised(tmp_path, stored, quant_config(), name=name)
    with pytest.raises(CheckpointError, match="holds several quantised files"):
        load_checkpoint(tmp_path)


def test_what_a_file_name_says_is_known_before_it_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, quant_config())
    (tmp_path / "4bit-16g.safetensors").touch()
    found = load_config(tmp_path).quantization
    assert found is not None
    assert (found.bits, found.group_size) == (4, 16)
    (tmp_path / "4bit-16g.safetensors").rename(tmp_path / "4bit-3bit.pt")
    assert load_config(tmp_path).quantization is not None
    (tmp_path / "model.safetensors").touch()
    assert load_config(tmp_path).quantization is None
