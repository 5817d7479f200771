"""A model's fingerprint: the same for the same numbers, another for any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoint.material import QKV, tiny_config, tiny_state, with_positions
from epilogue.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from epilogue.model import MPT, AttentionConfig


def model_of(config=None, state=None) -> MPT:
    config = config or tiny_config()
    model = MPT(config)
    model.load_state_dict(state or tiny_state(config))
    return model


def test_files_do_not_matter(tmp_path: Path) -> None:
    config = tiny_config()
    state = tiny_state(config)
    save_checkpoint(tmp_path / "one", state, config)
    save_checkpoint(tmp_path / "many", state, config, max_shard_bytes=1000, card="# words")
    prints = {fingerprint(load_checkpoint(tmp_path / name).model) for name in ("one", "many")}
    assert prints == {fingerprint(model_of(config, state))}
    assert len(prints.pop()) == 32


def test_settings_that_change_no_number_do_not_matter() -> None:
    state = tiny_state(tiny_config())
    others = [
        tiny_config(max_seq_len=999),
        tiny_config(extra={"name": "another"}),
        tiny_config(attn_config=AttentionConfig(alibi=True, attn_impl="flash")),
    ]
    assert {fingerprint(model_of(config, state)) for config in others} == {fingerprint(model_of())}


def test_any_weight_matters() -> None:
    first = fingerprint(model_of())
    for name, tensor in tiny_state(tiny_config()).items():
        changed = tiny_state(tiny_config())
        flat = changed[name].view(-1)
        flat[tensor.numel() // 2] = torch.nextafter(flat[tensor.numel() // 2], torch.tensor(9.0))
        assert fingerprint(model_of(state=changed)) != first, name


def test_where_a_value_stands_matters() -> None:
    swapped = tiny_state(tiny_config())
    swapped[QKV] = swapped[QKV].roll(1, dims=0)
    assert fingerprint(model_of(state=swapped)) != fingerprint(model_of())


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(attn_config=AttentionConfig(alibi=True, alibi_bias_max=16)),
        tiny_config(attn_config=AttentionConfig(alibi=True, clip_qkv=6)),
        tiny_config(norm_eps=1e-6),
        tiny_config(logit_scale=2.0),
    ],
)
def test_the_architecture_matters(config) -> None:
    assert fingerprint(model_of(config, tiny_state(tiny_config()))) != fingerprint(model_of())


def test_dtype_and_learned_positions_matter() -> None:
    assert fingerprint(model_of().to(torch.bfloat16)) != fingerprint(model_of())
    config = with_positions(32)
    longer = replace(config, max_seq_len=33)
    assert fingerprint(model_of(config)) != fingerprint(model_of(longer))
