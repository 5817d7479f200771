"""save_checkpoint: what is written comes back bit for bit, and no failure leaves a mixture."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from checkpoint.material import QKV, WTE, assert_same_bits, tiny_config, tiny_state, with_positions
from epilogue.checkpoint import load_checkpoint, load_config, save, save_checkpoint
from epilogue.errors import CheckpointError
from epilogue.model import AttentionConfig, MPTConfig

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def listing(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def shards_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.safetensors"))


def random_bits(config: MPTConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every pattern a dtype has: NaNs with payloads, infinities, subnormals, both zeros."""
    return {
        name: torch.randint(0, 256, (*x.shape[:-1], x.shape[-1] * dtype.itemsize), dtype=torch.uint8).view(dtype)
        for name, x in tiny_state(config).items()
    }


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 4096, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_of_any_bits(tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    state = random_bits(tiny_config(), dtype)
    state[QKV][0, :4] = torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0])
    save_checkpoint(tmp_path, state, tiny_config(), max_shard_bytes=max_shard_bytes)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.dtype == dtype
    assert_same_bits(checkpoint.model.state_dict(), state)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 20_000), min_size=2, max_size=4),
    is_tied=st.booleans(),
    no_bias=st.booleans(),
    norm_type=st.sampled_from(["layernorm", "low_precision_rmsnorm"]),
)
def test_saves_over_one_another(tmp_path: Path, sizes: list[int], is_tied: bool, no_bias: bool, norm_type: str) -> None:
    config = tiny_config(tie_word_embeddings=is_tied, no_bias=no_bias, norm_type=norm_type)
    for max_shard_bytes in sizes:
        state = random_bits(config, torch.float32)
        save_checkpoint(tmp_path, state, config, max_shard_bytes=max_shard_bytes)
        assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), state)
    loaded = load_checkpoint(tmp_path).config
    assert loaded.attn_config == config.attn_config
    assert (loaded.no_bias, loaded.norm_type) == (no_bias, norm_type)


def test_what_is_written(tmp_path: Path) -> None:
    tokenizer = tmp_path / "other.json"
    tokenizer.write_text("{}")
    config = tiny_config(extra={"eos_token_id": 3, "dtype": "float64", "auto_map": {"AutoConfig": "x.Y"}})
    directory = tmp_path / "deep" / "model"
    state = tiny_state(config)
    save_checkpoint(directory, state, config, dtype=torch.bfloat16, tokenizer_file=tokenizer, card="# A model\n")
    assert listing(directory) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.json",
    }
    written = json.loads((directory / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16"
    assert not written.keys() & {"dtype", "auto_map"}
    assert written["model_type"] == "mpt"
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation == {"use_cache": True, "eos_token_id": 3}
    assert (directory / "README.md").read_text() == "# A model\n"
    assert (directory / "tokenizer.json").read_text() == "{}"
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert_same_bits(load_checkpoint(directory).model.state_dict(), {n: x.bfloat16() for n, x in state.items()})


def test_the_index(tmp_path: Path) -> None:
    state = tiny_state(tiny_config(), torch.float16)
    save_checkpoint(tmp_path, state, tiny_config(), dtype=torch.float32, max_shard_bytes=5000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.numel() * 4 for x in state.values())
    assert index["weight_map"].keys() == state.keys()
    assert sorted(set(index["weight_map"].values())) == shards_of(tmp_path)
    count = len(shards_of(tmp_path))
    assert count > 2
    assert shards_of(tmp_path)[0] == f"model-00001-of-{count:05}.safetensors"
    assert all((tmp_path / name).stat().st_size < 5000 + 2000 for name in shards_of(tmp_path))


def test_surplus_shards_go_and_the_users_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(tmp_path, tiny_state(tiny_config()), tiny_config(), max_shard_bytes=1000)
    assert len(shards_of(tmp_path)) > 5
    save_checkpoint(tmp_path, tiny_state(tiny_config()), tiny_config(), max_shard_bytes=9000)
    assert {name.split("-of-")[1] for name in shards_of(tmp_path)} == {f"{len(shards_of(tmp_path)):05}.safetensors"}
    save_checkpoint(tmp_path, tiny_state(tiny_config()), tiny_config())
    assert listing(tmp_path) == {"notes.txt", "config.json", "generation_config.json", "model.safetensors"}


def test_a_checkpoint_may_be_saved_onto_itself(tmp_path: Path) -> None:
    config = tiny_config()
    save_checkpoint(tmp_path, tiny_state(config), config)
    (tmp_path / "tokenizer.json").write_text("{}")
    state = load_checkpoint(tmp_path).model.state_dict()
    save_checkpoint(tmp_path, state, config, tokenizer_file=tmp_path / "tokenizer.json", max_shard_bytes=2000)
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), state)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: disk")])
@pytest.mark.parametrize("at", [0, 2])
def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    old = tiny_state(tiny_config())
    save_checkpoint(tmp_path, old, tiny_config(), max_shard_bytes=5000)
    before = listing(tmp_path)
    calls, real = iter(range(99)), save.save_file

    def save_file(*args: Any, **options: Any) -> None:
        if next(calls) == at:
            raise error
        real(*args, **options)

    monkeypatch.setattr(save, "save_file", save_file)
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*\); make room or choose another directory"):
        save_checkpoint(tmp_path, tiny_state(tiny_config()), tiny_config(), max_shard_bytes=4000)
    assert listing(tmp_path) == before
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), old)


class Killed(BaseException):
    """The process ends here."""


def painted(bias_max: int, value: float) -> tuple[MPTConfig, dict[str, torch.Tensor]]:
    """A checkpoint of tiny_config's shapes whose every file says which one it is."""
    config = tiny_config(n_layers=1, attn_config=AttentionConfig(alibi=True, alibi_bias_max=bias_max))
    return config, {name: torch.full_like(x, value) for name, x in tiny_state(config).items()}


OLD, NEW = (8, 1.0), (16, 2.0)
SIZES = [(900, 4000), (4000, 900), (10**9, 4000), (4000, 10**9), (4000, 4000), (10**9, 10**9)]  # 8, 4 or 1 shards


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_no_crash_leaves_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int) -> None:
    """Killed at every step that changes the directory, it holds the old checkpoint, the new one, or none."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # takes most of the time and changes nothing here
    (old_config, old), (new_config, new) = painted(*OLD), painted(*NEW)
    seen = set()
    for step in itertools.count():
        directory = tmp_path / str(step)
        save_checkpoint(directory, old, old_config, max_shard_bytes=before)
        try:
            with monkeypatch.context() as patch:
                kill_after(patch, step)
                save_checkpoint(directory, new, new_config, max_shard_bytes=after)
        except Killed:
            seen.add(outcome(directory))
            save_checkpoint(directory, new, new_config, max_shard_bytes=after)  # the next run mends it
            assert outcome(directory) == NEW
            assert not [name for name in listing(directory) if name.endswith(".partial")]
        else:
            break
    assert outcome(directory) == NEW
    assert seen >= {OLD, None}


def kill_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """From the change to the directory that follows so many, nothing is done any more, cleaning up included."""
    done = itertools.count()

    def guarded(real: Any) -> Any:
        def change(*args: Any, **options: Any) -> Any:
            if next(done) >= steps:
                raise Killed
            return real(*args, **options)

        return change

    patch.setattr(Path, "unlink", guarded(Path.unlink))
    patch.setattr(Path, "replace", guarded(Path.replace))
    patch.setattr(save, "save_file", guarded(save.save_file))


def outcome(directory: Path) -> tuple[float, float] | None:
    """Which checkpoint loads, as its slopes and its weights say; None if none does."""
    try:
        checkpoint = load_checkpoint(directory)
    except CheckpointError:
        return None
    values = {float(x) for tensor in checkpoint.model.state_dict().values() for x in tensor.unique()}
    assert len(values) == 1, "weights of two checkpoints"
    came = (checkpoint.config.attn_config.alibi_bias_max, values.pop())
    assert came in {OLD, NEW}, "the config of one and the weights of another"
    return came


def test_everything_is_on_the_disk_before_anything_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("flush"), real_fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append(to.name), real_replace(self, to))[1])
    save_checkpoint(tmp_path, tiny_state(tiny_config()), tiny_config(), max_shard_bytes=10_000)
    first = next(i for i, event in enumerate(events) if event != "flush")
    assert events[:first].count("flush") >= len(listing(tmp_path))
    replaced = [event for event in events if event != "flush"]
    assert replaced[-1] == "config.json"
    assert replaced.index("model.safetensors.index.json") > replaced.index(shards_of(tmp_path)[-1])


@pytest.mark.parametrize("obstacle", ["file in the way", "card is a directory"])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, obstacle: str) -> None:
    directory = tmp_path / "model"
    if obstacle == "file in the way":
        directory.write_text("")
    else:
        (directory / "README.md").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(directory, tiny_state(tiny_config()), tiny_config(), card="x")
    if directory.is_dir():
        assert "config.json" not in listing(directory)


def test_wrong_calls(tmp_path: Path) -> None:
    config = tiny_config()
    state = tiny_state(config)
    with pytest.raises(ValueError, match=f"the state does not fit the config .missing: {WTE}"):
        save_checkpoint(tmp_path, {n: x for n, x in state.items() if n != WTE}, config)
    with pytest.raises(ValueError, match=r"unknown: lm_head\.weight"):
        save_checkpoint(tmp_path, state | {"lm_head.weight": state[WTE]}, config)
    with pytest.raises(ValueError, match=r"misshapen: .* \[2\] and should be \[16\]"):
        save_checkpoint(tmp_path, state | {"transformer.norm_f.weight": torch.ones(2)}, config)
    with pytest.raises(ValueError, match=r"dtype must be .* got torch.int64"):
        save_checkpoint(tmp_path, state, config, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"dtype must be .* got torch.int32"):
        save_checkpoint(tmp_path, state | {QKV: state[QKV].int()}, config)
    with pytest.raises(ValueError, match="max_shard_bytes must be at least 1, got 0"):
        save_checkpoint(tmp_path, state, config, max_shard_bytes=0)
    assert not listing(tmp_path)


def test_tensors_that_share_memory_or_are_views(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    norm = torch.arange(16.0)
    tricky = {name: norm if "norm" in name else x.t().contiguous().t() for name, x in state.items()}
    save_checkpoint(tmp_path, tricky, tiny_config())
    assert_same_bits(load_checkpoint(tmp_path).model.state_dict(), {n: x.contiguous() for n, x in tricky.items()})


def test_shortened_positions_are_saved_as_such(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", tiny_state(with_positions()), with_positions())
    short = load_checkpoint(tmp_path / "a", max_seq_len=5)
    save_checkpoint(tmp_path / "b", short.model.state_dict(), short.config)
    assert load_config(tmp_path / "b").max_seq_len == 5
    assert_same_bits(load_checkpoint(tmp_path / "b").model.state_dict(), short.model.state_dict())
