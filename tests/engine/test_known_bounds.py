"""Bounds that were computed once count again for the very same model, and for no other."""

import math
from pathlib import Path

import pytest
import torch

from epilogue.checkpoint import Checkpoint
from epilogue.engine import Engine, known_bounds
from epilogue.model import MPT, EvictionBounds, eviction_bounds

FIELDS = ("root_LHDD", "offset_LHD", "error_LH", "floor_LH", "largest_LH")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(known_bounds, "_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The storages that bounds were computed for."""
    storages: list[str] = []

    def compute(model: MPT, storage: str) -> EvictionBounds:
        storages.append(storage)
        return eviction_bounds(model, storage)

    monkeypatch.setattr(known_bounds, "eviction_bounds", compute)
    return storages


def known(model: MPT, directory: Path | None, storage="int8") -> EvictionBounds:
    return known_bounds.known_bounds(model, storage, directory, least_parameters=0)


@pytest.mark.parametrize("clip_qkv", [None, 0.5])
def test_the_same_bits_without_computing(tiny_mpt, tmp_path: Path, computed: list[str], clip_qkv) -> None:
    model = tiny_mpt(attn_config={"clip_qkv": clip_qkv})
    first, again = known(model, tmp_path), known(model, tmp_path)
    assert computed == ["int8"]
    for name in FIELDS:
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
    assert first.clip == again.clip
    assert (first.clip == math.inf) == (clip_qkv is None)


def test_other_weights_and_storages_have_their_own(tiny_mpt, tmp_path: Path, computed: list[str]) -> None:
    known(tiny_mpt(), tmp_path)
    known(tiny_mpt(), tmp_path, "int4")
    known(changed := tiny_mpt(), tmp_path)
    with torch.no_grad():
        weight = changed.transformer.blocks[0].attn.Wqkv.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    known(changed, tmp_path)
    assert computed == ["int8", "int4", "int8"]


def test_a_file_of_another_model_under_this_ones_name(tiny_mpt, tmp_path: Path, computed: list[str], caplog) -> None:
    names = []
    for seed in range(2):
        before = set(tmp_path.glob("*.safetensors"))
        known(tiny_mpt(seed=seed), tmp_path)
        names += set(tmp_path.glob("*.safetensors")) - before
    names[0].replace(names[1])
    bounds = known(tiny_mpt(seed=1), tmp_path)
    assert torch.equal(bounds.floor_LH, eviction_bounds(tiny_mpt(seed=1), "int8").floor_LH)
    assert len(computed) == 3
    assert "its checksum is wrong" in caplog.text


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_damaged_file(tiny_mpt, tmp_path: Path, computed: list[str], caplog, part: float, is_cut: bool) -> None:
    known(tiny_mpt(), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    place = round(part * (len(whole) - 1))
    path.write_bytes(whole[:place] if is_cut else whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    known(tiny_mpt(), tmp_path)
    assert len(computed) == 2
    assert "the bounds in it are computed again" in caplog.text
    known(tiny_mpt(), tmp_path)
    assert len(computed) == 2, "mended"


def test_a_folder_that_cannot_be_written(tiny_mpt, cache: Path, computed: list[str], tmp_path: Path) -> None:
    for directory in (None, tmp_path / "not there"):
        known(tiny_mpt(), directory)
    assert computed == ["int8"]
    assert len(list(cache.iterdir())) == 1


def test_no_place_at_all(tiny_mpt, cache: Path, computed: list[str], caplog) -> None:
    cache.write_text("a file where a folder should be")
    known(tiny_mpt(), None)
    known(tiny_mpt(), None)
    assert len(computed) == 2
    assert "cannot be written" in caplog.text


def test_small_models_leave_no_file(tiny_mpt, tmp_path: Path, cache: Path) -> None:
    model = tiny_mpt()
    Engine.on(Checkpoint(model, model.config, tmp_path, model.dtype), num_pages=10)
    assert list(tmp_path.iterdir()) == []
    assert not cache.exists()


def test_an_engine_uses_them(tiny_mpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_mpt()
    monkeypatch.setattr(known_bounds, "num_parameters", lambda _: 10**9)
    checkpoint = Checkpoint(model, model.config, tmp_path, model.dtype)
    texts = [Engine.on(checkpoint, num_pages=100).open_book([1, 2] * 300) for _ in range(2)]
    assert len(list(tmp_path.iterdir())) == 1
    alone = Engine(model, num_pages=100).open_book([1, 2] * 300)
    for text in texts:
        torch.testing.assert_close(text.logits_V, alone.logits_V, rtol=0, atol=0)
    assert Engine.on(checkpoint, num_pages=10, epsilon=0).bounds is None
