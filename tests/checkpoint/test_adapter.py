"""Adapters: in our files, in PEFT's hands, and merged into dense and quantised bases."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoint.material import tiny_config, tiny_state
from epilogue.checkpoint import load_adapter, load_checkpoint, merge_adapter, save_adapter, save_checkpoint
from epilogue.errors import CheckpointError
from epilogue.model import MPT, AttentionConfig, MPTConfig, QuantLinear, adapters, add_adapters
from epilogue.quant import HeldOut, Job, Scheme, quantise_checkpoint

IDS = torch.randint(40, (2, 33), generator=torch.Generator().manual_seed(0))
CONFIG = tiny_config(
    d_model=64, vocab_size=40, max_seq_len=64, no_bias=True,
    attn_config=AttentionConfig(alibi=True, clip_qkv=6.0),
)  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "base", tiny_state(CONFIG), CONFIG, dtype=torch.float32)
    return tmp_path / "base"


@pytest.fixture
def quantised(base: Path) -> Path:
    scheme = Scheme(group_size=16, has_act_order=True)
    ids = [IDS[0].tolist()]
    out = base.with_name("quantised")
    quantise_checkpoint(Job(source=base, out=out, scheme=scheme, calibration=ids, held_out=HeldOut(ids, 40)))
    return out


def adapted(source: Path, **settings: Any) -> MPT:
    """With adapters that do something."""
    model = load_checkpoint(source, dtype=torch.float32).model
    targets = settings.pop("targets", ("Wqkv", "out_proj", "up_proj", "down_proj"))
    add_adapters(model, rank=4, alpha=8, targets=targets, **settings)
    for _, adapter in adapters(model):
        torch.nn.init.normal_(adapter.up, std=0.1)
    return model


def assert_close(got: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    assert (got - wanted).abs().max() <= share * wanted.abs().max()


def test_a_fresh_adapter_changes_nothing(base: Path) -> None:
    plain = load_checkpoint(base).model
    with torch.no_grad():  # attention that learns is another kernel
        wanted = plain(IDS)
        add_adapters(plain, rank=4, alpha=8, targets=["Wqkv"])
        assert torch.equal(plain(IDS), wanted)
    assert_close(plain(IDS), wanted)
    assert [name.split(".")[-1] for name, p in plain.named_parameters() if p.requires_grad] == ["down", "up"] * 2


@pytest.mark.parametrize("kind", ["base", "quantised"])
def test_merged_is_applied(kind: str, base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(kind)
    model = adapted(source, targets=("Wqkv", "down_proj"))
    save_adapter(tmp_path / "adapter", model, base=str(source))
    was_quantised = merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype=torch.float32)
    assert was_quantised == (kind == "quantised")
    merged = load_checkpoint(tmp_path / "merged")
    assert merged.config.quantization is None
    assert not any(isinstance(module, QuantLinear) for module in merged.model.modules())
    assert_close(merged.model(IDS), model(IDS))
    assert (model(IDS) - load_checkpoint(source, dtype=torch.float32).model(IDS)).abs().max() > 0.01


def test_saved_adapters_come_back(base: Path, tmp_path: Path) -> None:
    model = adapted(base, dropout=0.25)
    save_adapter(tmp_path / "adapter", model, base=str(base))
    again = load_checkpoint(base).model
    load_adapter(tmp_path / "adapter", again)
    assert torch.equal(again.eval()(IDS), model.eval()(IDS))
    assert {adapter.dropout.p for _, adapter in adapters(again)} == {0.25}


# PEFT asks by an old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_peft_reads_ours_and_we_read_peft_s(base: Path, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    import epilogue.hf  # noqa: F401 - registers

    model = adapted(base).eval()
    save_adapter(tmp_path / "adapter", model, base=str(base))
    with warnings.catch_warnings(action="ignore"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert_close(theirs(IDS).logits, model(IDS))
    theirs.save_pretrained(tmp_path / "peft")
    merge_adapter(tmp_path / "peft", tmp_path / "merged", base=base)
    assert_close(load_checkpoint(tmp_path / "merged").model(IDS), model(IDS))


def test_slopes_that_were_changed_in_training_are_merged_too(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    model.set_alibi_bias_max(13.0)
    save_adapter(tmp_path / "adapter", model, base=str(base))
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = load_checkpoint(tmp_path / "merged")
    assert merged.config.attn_config.alibi_bias_max == 13
    assert_close(merged.model(IDS), model(IDS))


def test_gradients_through_codes_are_those_through_the_dense_weight(quantised: Path) -> None:
    model = adapted(quantised)
    dense = adapted(quantised)
    for name, layer in list(dense.named_modules()):
        if isinstance(layer, QuantLinear):
            plain = MPT(CONFIG).get_submodule(name)
            assert isinstance(plain, torch.nn.Linear)
            plain.weight = torch.nn.Parameter(layer.weight, requires_grad=False)
            plain.adapter = layer.adapter
            parent, _, leaf = name.rpartition(".")
            setattr(dense.get_submodule(parent), leaf, plain)
    for (_, mine), (_, theirs) in zip(adapters(model), adapters(dense), strict=True):
        theirs.load_state_dict(mine.state_dict())
    for each in (model, dense):
        each.loss(IDS[:, :-1], IDS[:, 1:]).backward()
    for (name, mine), (_, theirs) in zip(adapters(model), adapters(dense), strict=True):
        for one, other in ((mine.down, theirs.down), (mine.up, theirs.up)):
            assert one.grad is not None
            assert other.grad is not None
            assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm(), name


def test_a_model_is_not_read_from_adapters_alone(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", adapted(base), base=str(base))
    with pytest.raises(CheckpointError, match=r"adapter holds low-rank adapters and no model; .*epilogue merge"):
        load_checkpoint(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "IA3"}, "holds a IA3 adapter; only LORA"),
        ({"use_dora": True}, "made with use_dora = True, which is not run here"),
        ({"base_model_name_or_path": None}, "does not say what the adapters stand beside; name the base"),
    ],
)
def test_other_adapters_are_refused(base: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    save_adapter(tmp_path / "adapter", adapted(base), base=str(base))
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=sentence):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", adapted(base), base=str(base))
    other: MPTConfig = tiny_config(d_model=32, vocab_size=40, max_seq_len=64, no_bias=True)
    save_checkpoint(tmp_path / "other", tiny_state(other), other)
    with pytest.raises(CheckpointError, match=r"of 192 outputs and 64 inputs, which this base has not"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", base=tmp_path / "other")
    (tmp_path / "merged").mkdir()
    with pytest.raises(CheckpointError, match="is there already"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_adapter(tmp_path / "adapter", load_checkpoint(base).model)
