"""MFU counts the model's own arithmetic, of attention only what is seen; the time left is that of the pace so far."""

import math
from pathlib import Path

import pytest

from epilogue.data import Shards
from epilogue.model import NAMED_SIZES, flops_per_token, num_parameters
from epilogue.train import Progress, Trainer
from epilogue.train.progress import training_flops
from train.material import tiny_recipe


def test_flops_are_those_of_a_causal_pass() -> None:
    config = NAMED_SIZES["mpt-7b"]
    tokens = 4096
    flops = training_flops(config, tokens, tokens * (tokens + 1) // 2)
    assert flops == pytest.approx(3 * tokens * flops_per_token(config, context_tokens=tokens // 2), rel=1e-3)
    assert flops == pytest.approx(6 * num_parameters(config) * tokens, rel=0.2)


def test_what_a_step_says(shards: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    trainer = Trainer(tiny_recipe(shards, tmp_path, steps=3))
    trainer.run(on_step=seen.append, peak_flop_per_s=1e12)
    batch = trainer._windows[0]
    flops = training_flops(trainer.model.config, batch.num_targets, batch.num_pairs)
    for progress in seen:
        assert progress.mfu == pytest.approx(flops * progress.tokens_per_s / batch.num_targets / 1e12, rel=0.3)
        assert progress.bits_per_byte == pytest.approx(
            progress.loss / math.log(2) / Shards(shards / "train").bytes_per_token
        )
        assert progress.memory_bytes > 1e6
    assert seen[0].left_s > 0
    assert seen[-1].left_s == 0


def test_without_a_peak_there_is_no_mfu(shards: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    Trainer(tiny_recipe(shards, tmp_path, steps=1)).run(on_step=seen.append)
    assert seen[0].mfu is None
    assert "mfu" not in seen[0].entry()
