"""Exports of quantised models: tensor by tensor as the table says, and read back before they count."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoint.material import tiny_state
from checkpoint.quantised_material import quant_config, quantised_state, write_quantised
from epilogue.checkpoint import Checkpoint, export_gptq, export_quantised, load_checkpoint, save_checkpoint
from epilogue.errors import CheckpointError

QKV = "transformer.blocks.1.attn.Wqkv"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}


def quantised(
    tmp_path: Path, layout: str = "gptq", said: dict[str, Any] = GPTQ, **options: Any
) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    stored, _ = quantised_state(quant_config(), layout, **options)
    write_quantised(tmp_path / "source", stored, quant_config(), quantization_config=said)
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    return load_checkpoint(tmp_path / "source"), stored


@pytest.mark.parametrize("has_order", [False, True])
def test_gptq_gives_back_what_came(tmp_path: Path, *, has_order: bool) -> None:
    checkpoint, stored = quantised(tmp_path, has_order=has_order)
    files = export_gptq(checkpoint, tmp_path / "out", format="gptq")
    assert {"config.json", "model.safetensors", "quantize_config.json", "tokenizer.json"} <= {f.name for f in files}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(written[name], tensor), name
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["checkpoint_format"], said["desc_act"], said["sym"]) == ("gptq", has_order, False)
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == said


def test_gptq_v2_stores_zero_points_as_they_are(tmp_path: Path) -> None:
    checkpoint, stored = quantised(tmp_path, is_symmetric=True, said=GPTQ | {"sym": True})
    export_gptq(checkpoint, tmp_path / "out", format="gptq_v2")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert stored[f"{QKV}.qzeros"].unique().tolist() == [0x77777777]
    assert written[f"{QKV}.qzeros"].unique().tolist() == [0x88888888 - 2**32]
    assert torch.equal(written[f"{QKV}.qzeros"], stored[f"{QKV}.qzeros"] + 0x11111111)
    assert torch.equal(written[f"{QKV}.qweight"], stored[f"{QKV}.qweight"])


def test_kobold_tensor_by_tensor(tmp_path: Path) -> None:
    """What the fork's strict loading asks for at version 2: docs/formats.md."""
    checkpoint, stored = quantised(tmp_path)
    files = {path.name for path in export_gptq(checkpoint, tmp_path / "out", format="kobold")}
    assert {"4bit-16g.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not {"model.safetensors", "quantize_config.json"} & files
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["gptq_bits"], config["gptq_groupsize"], config["gptq_version"]) == (4, 16, 2)
    assert (config["model_type"], config["architectures"]) == ("mpt", ["MPTForCausalLM"])
    assert "quantization_config" not in config
    with safe_open(tmp_path / "out" / "4bit-16g.safetensors", framework="pt") as file:
        found = {name: (file.get_tensor(name).dtype, list(file.get_tensor(name).shape)) for name in stored}
        assert set(file.keys()) == set(stored)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in stored.items())
    prefix = "transformer.blocks.0."
    wanted = {
        "transformer.wte.weight": (torch.float16, [24, 32]),
        "transformer.norm_f.weight": (torch.float16, [32]),
        f"{prefix}norm_1.weight": (torch.float16, [32]),
        f"{prefix}norm_2.weight": (torch.float16, [32]),
    }
    for name, inputs, outputs in (
        ("attn.Wqkv", 32, 96),
        ("attn.out_proj", 32, 32),
        ("ffn.up_proj", 32, 96),
        ("ffn.down_proj", 96, 32),
    ):
        wanted |= {
            f"{prefix}{name}.qweight": (torch.int32, [inputs // 8, outputs]),
            f"{prefix}{name}.qzeros": (torch.int32, [inputs // 16, outputs // 8]),
            f"{prefix}{name}.scales": (torch.float16, [inputs // 16, outputs]),
            f"{prefix}{name}.g_idx": (torch.int32, [inputs]),
        }
    assert {name: kind for name, kind in found.items() if ".blocks.1." not in name} == wanted


def test_kobold_with_eight_bits_is_found_by_its_config(tmp_path: Path) -> None:
    checkpoint, stored = quantised(tmp_path, bits=8, said=GPTQ | {"bits": 8})
    export_gptq(checkpoint, tmp_path / "out", format="kobold")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == stored.keys()


@pytest.mark.parametrize("layout", ["kobold-0", "kobold-1", "gptq_v2"])
@pytest.mark.parametrize("format", ["gptq", "gptq_v2", "kobold"])
def test_every_layout_becomes_every_other(tmp_path: Path, layout: str, format: Any) -> None:
    options = {"is_symmetric": True} if layout == "kobold-0" else {}
    stored, _ = quantised_state(quant_config(), layout, **options)
    for name in [name for name in stored if name.endswith((".scales", ".zeros"))]:
        stored[name] = stored[name].half().float()  # in fp32, but numbers that fp16 has
    said = {"gptq_bits": 4} if layout != "gptq_v2" else {"quantization_config": GPTQ | {"format": "gptq_v2"}}
    source = load_checkpoint(write_quantised(tmp_path / "source", stored, quant_config(), **said))
    export_gptq(source, tmp_path / "out", format=format)
    one = dict(source.model.named_buffers())
    other = dict(load_checkpoint(tmp_path / "out").model.named_buffers())
    assert all(torch.equal(one[name].double(), other[name].double()) for name in one)


def test_scales_that_fp16_does_not_have_are_refused(tmp_path: Path) -> None:
    stored, _ = quantised_state(quant_config(), "kobold-1")
    source = load_checkpoint(write_quantised(tmp_path / "source", stored, quant_config(), gptq_bits=4))
    with pytest.raises(CheckpointError, match=r"scales in torch.float32 do not fit fp16"):
        export_gptq(source, tmp_path / "out", format="gptq")
    assert not (tmp_path / "out").exists()


def test_a_zero_point_of_sixteen_has_no_place_in_v2(tmp_path: Path) -> None:
    stored, _ = quantised_state(quant_config(), "gptq")
    stored[f"{QKV}.qzeros"][:] = -1  # stored 15, which is a zero point of 16
    source = load_checkpoint(write_quantised(tmp_path / "source", stored, quant_config(), quantization_config=GPTQ))
    with pytest.raises(CheckpointError, match="zero points from 16 to 16 do not fit the layout gptq_v2"):
        export_gptq(source, tmp_path / "out", format="gptq_v2")
    export_gptq(source, tmp_path / "out", format="gptq")


def test_a_dense_model_is_not_exported(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "dense", tiny_state(quant_config()), quant_config())
    with pytest.raises(CheckpointError, match="is not quantised; quantise it first"):
        export_gptq(load_checkpoint(tmp_path / "dense"), tmp_path / "out", format="gptq")


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    checkpoint, _ = quantised(tmp_path)
    with pytest.raises(CheckpointError, match="exists already"):
        export_gptq(checkpoint, tmp_path / "source", format="gptq")


def test_what_comes_back_otherwise_is_not_reported_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = quantised(tmp_path)
    real = export_quantised.stored_tensors

    def wrong(*args: Any) -> dict[str, torch.Tensor]:
        tensors = real(*args)
        tensors["qweight"][0, 0] ^= 1
        return tensors

    monkeypatch.setattr(export_quantised, "stored_tensors", wrong)
    with pytest.raises(CheckpointError, match="is not what was written"):
        export_gptq(checkpoint, tmp_path / "out", format="gptq")
    assert not (tmp_path / "out").exists()
