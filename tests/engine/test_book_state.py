"""Book states: opened again they say the same to the last bit, and anything else is refused in one sentence."""

import json
import struct
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from engine.invariants import check
from epilogue.engine import Engine, SamplingParams, Sequence, Storage
from epilogue.engine.book_state import open_state, read_header, read_outline, save_state, state_bytes
from epilogue.errors import CapacityError, StateError
from epilogue.model import MPT

GREEDY = SamplingParams(temperature=0, repetition_penalty=3, repetition_range_tokens=8, max_new_tokens=200)
SAMPLED = SamplingParams(temperature=1.5, seed=3, max_new_tokens=200)


def engine_on(model: MPT, **changes: Any) -> Engine:
    defaults = {"num_pages": 300, "epsilon": 1e-4, "chunk_tokens": 100, "undo_tokens": 64, "spacings": (128, 512)}
    return Engine(model, **defaults | changes)


@pytest.fixture
def model(tiny_mpt) -> MPT:
    return tiny_mpt(n_heads=2, attn_config={"alibi_bias_max": 2})


@pytest.fixture
def novel() -> list[int]:
    return torch.randint(0, 61, (900,), generator=torch.Generator().manual_seed(8)).tolist()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "a.state.safetensors"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def assert_same(engine: Engine, text: Sequence, other_engine: Engine, other: Sequence) -> None:
    table, twin, stop = text.table, other.table, text.table.num_pages
    assert (text.ids[: table.num_tokens], table.num_tokens) == (other.ids, twin.num_tokens)
    live = table.ids_LKP[..., :stop] >= 0
    assert torch.equal(live, twin.ids_LKP[..., :stop] >= 0)
    for name in ("keys", "values"):
        pages, others = getattr(engine.pages.pool, name), getattr(other_engine.pages.pool, name)
        rows = zip(
            pages.rows(table.ids_LKP[..., :stop][live]), others.rows(twin.ids_LKP[..., :stop][live]), strict=True
        )
        assert all(x is y is None or same_bits(x, y) for x, y in rows)
    assert same_bits(table.norms_LKP[..., :stop], twin.norms_LKP[..., :stop])
    assert same_bits(table.scores_LHP[..., :stop], twin.scores_LHP[..., :stop])


@pytest.mark.parametrize(("storage", "params"), [("float32", GREEDY), *((kind, SAMPLED) for kind in get_args(Storage))])
def test_the_same_bits_and_the_same_tokens(
    model: MPT, novel: list[int], place: Path, storage: Storage, params: SamplingParams
) -> None:
    before, after = engine_on(model, storage=storage), engine_on(model, storage=storage)
    text = before.open_book(novel)
    about = state_bytes(before, text)
    assert about <= save_state(place, before, text, title="A Novel", model="tiny", on="2026-11-23") < about + 4096
    again = open_state(place, after)
    assert_same(before, text, after, again)
    assert same_bits(text.logits_V, again.logits_V)
    assert (text.reads.share, text.reads.omitted_mass) == (again.reads.share, again.reads.omitted_mass)
    check(after)
    assert list(before.stream(text, params)) == list(after.stream(again, params))
    check(after)
    header = read_header(place)
    assert (header.title, header.model, header.read_on, header.num_tokens) == ("A Novel", "tiny", "2026-11-23", 900)
    assert read_outline(place)[0] == novel


@pytest.mark.parametrize("any_seed", [0])
def test_every_architecture(any_mpt: MPT, place: Path, any_seed: int) -> None:
    book = torch.randint(0, 61, (80,), generator=torch.Generator().manual_seed(any_seed)).tolist()
    before, after = engine_on(any_mpt), engine_on(any_mpt)
    text = before.open_book(book)
    save_state(place, before, text)
    again = open_state(place, after)
    assert list(before.stream(text, SAMPLED)) == list(after.stream(again, SAMPLED))


@pytest.mark.parametrize("edit", [900, 880, 700, 600, 100, 0])
def test_an_edited_book(model: MPT, novel: list[int], place: Path, edit: int) -> None:
    """At its end, near it, in the middle and at the start; as if the text had never left the engine."""
    before, after = engine_on(model), engine_on(model)
    text = before.open_book(novel)
    save_state(place, before, text)
    again = open_state(place, after)
    edited = [*novel[:edit], *(60 - token for token in novel[edit : edit + 5]), *novel[edit + 9 :], 1, 2, 3]
    passes: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    for engine, sequence in ((before, text), (after, again)):
        engine.revise(sequence, edited)
        passes.append(-1)
    middle = passes.index(-1)
    assert passes[:middle] == passes[middle + 1 : -1]
    assert edit < 512 or sum(passes[:middle]) <= len(edited) - 512
    assert again.ids == edited
    assert same_bits(text.logits_V, again.logits_V)
    expected_V = engine_on(model, epsilon=0).open_book(edited).logits_V
    assert (again.logits_V - expected_V).abs().max() <= 20 * 1e-4 * expected_V.abs().max()
    check(after)


def test_revising_to_the_same_text_or_its_beginning(model: MPT, novel: list[int]) -> None:
    engine = engine_on(model, epsilon=0)
    text = engine.open_book(novel)
    logits_V = text.logits_V
    engine.revise(text, novel)
    assert text.logits_V is logits_V
    engine.revise(text, novel[:890])
    expected_V = engine_on(model).open_book(novel[:890]).logits_V
    torch.testing.assert_close(text.logits_V, expected_V, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="there must be tokens"):
        engine.revise(text, [])
    with pytest.raises(CapacityError, match="tokens would fit"):
        engine.revise(text, novel[:500], room_tokens=10**6)
    assert text.ids == novel[:500]
    check(engine)


def test_what_was_not_read_is_not_kept(model: MPT, novel: list[int], place: Path) -> None:
    """A text with pending tokens: after an interruption, or a token that was just chosen."""
    engine = engine_on(model)
    text = engine.open_book(novel)
    stream = engine.stream(text, SAMPLED)
    next(stream)
    save_state(place, engine, text)
    assert text.num_pending == 1
    again = open_state(place, after := engine_on(model))
    assert (again.ids, again.logits_V) == (novel, None)
    engine.append(text, [])
    after.revise(again, text.ids)
    torch.testing.assert_close(again.logits_V, text.logits_V, rtol=0, atol=0)


def test_it_shares_pages_like_any_text(model: MPT, novel: list[int], place: Path) -> None:
    engine = engine_on(model)
    save_state(place, engine, engine.open_book(novel))
    again = open_state(place, engine)
    held = engine.pages.num_held
    twin = engine.open_book([*novel[:896], 5])
    assert engine.pages.num_held - held <= 4
    engine.close(again)
    engine.close(twin)
    assert engine.pages.num_held == 0
    check(engine)


def test_no_room_for_it(model: MPT, novel: list[int], place: Path) -> None:
    save_state(place, engine := engine_on(model), engine.open_book(novel))
    small = engine_on(model, num_pages=3)
    with pytest.raises(CapacityError, match="more pages of keys and values are needed and 3 of 3 are free"):
        open_state(place, small)
    assert small.pages.num_held == 0
    check(small)


def refusal(place: Path, engine: Engine) -> str:
    with pytest.raises(StateError) as caught:
        open_state(place, engine)
    assert engine.pages.num_held == 0
    check(engine)
    message = str(caught.value)
    assert message.startswith(f"the book state {place} ")
    assert "\n" not in message
    return message


def test_another_model_storage_or_epsilon(model: MPT, novel: list[int], place: Path, tiny_mpt) -> None:
    save_state(place, engine := engine_on(model), engine.open_book(novel))
    assert "another storage" in refusal(place, engine_on(model, storage="int8"))
    assert "another epsilon (0.0001, here 1e-05)" in refusal(place, engine_on(model, epsilon=1e-5))
    changed = tiny_mpt(n_heads=2, attn_config={"alibi_bias_max": 2})
    weight = changed.transformer.blocks[1].ffn.down_proj.weight
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    assert "another model" in refusal(place, engine_on(changed))


def rewritten(place: Path, change: Any) -> None:
    """The file with another header."""
    raw = place.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = change(json.loads(raw[8 : 8 + length]))
    text = json.dumps(header).encode()
    place.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_another_version(model: MPT, novel: list[int], place: Path) -> None:
    save_state(place, engine := engine_on(model), engine.open_book(novel))
    rewritten(place, lambda h: h | {"__metadata__": h["__metadata__"] | {"version": "2"}})
    assert "is of version '2' and this program reads version 1" in refusal(place, engine_on(model))


@pytest.mark.parametrize("title", ["../../etc/passwd", "a\u0000b\n\x1b[31m", "x" * 5000, "\ud7ff", "Ünïcode “quotes”"])
def test_a_title_is_only_words(model: MPT, novel: list[int], place: Path, title: str) -> None:
    save_state(place, engine := engine_on(model), engine.open_book(novel), title=title)
    assert read_header(place).title == title
    open_state(place, engine_on(model))
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[MPT, bytes, torch.Tensor, Path]:
    from epilogue.model import AttentionConfig, MPTConfig

    attention = AttentionConfig(alibi=True, alibi_bias_max=2)
    model = MPT(MPTConfig(d_model=8, n_heads=1, n_layers=1, vocab_size=61, no_bias=True, attn_config=attention))
    model.init_weights(std=0.3, seed=0)
    engine = engine_on(model, storage="int4", num_pages=20)
    place = tmp_path_factory.mktemp("states") / "b.state.safetensors"
    text = engine.open_book([i % 61 for i in range(300)])
    save_state(place, engine, text, title="A Book")
    assert text.logits_V is not None
    return model, place.read_bytes(), text.logits_V, place


def starts_of_regions(raw: bytes) -> list[int]:
    """The header's length, its text, and every tensor."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    return [0, 8, *(8 + length + entry["data_offsets"][0] for entry in header.values()), len(raw)]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere(whole: tuple[MPT, bytes, torch.Tensor, Path], data: st.DataObject) -> None:
    model, raw, _, place = whole
    starts = starts_of_regions(raw)
    region = data.draw(st.integers(0, len(starts) - 2))
    at = data.draw(st.integers(starts[region], starts[region + 1] - 1))
    place.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << data.draw(st.integers(0, 7))]) + raw[at + 1 :])
    refusal(place, engine_on(model, storage="int4", num_pages=20))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_or_too_long(whole: tuple[MPT, bytes, torch.Tensor, Path], data: st.DataObject) -> None:
    model, raw, _, place = whole
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    place.write_bytes(data.draw(st.sampled_from([cut, raw + b"\0", raw + raw])))
    refusal(place, engine_on(model, storage="int4", num_pages=20))


@pytest.mark.parametrize("length", [10 * 2**30, 2**63, 2**64 - 1, 2**20 + 1, 0])
def test_a_header_that_says_it_is_huge(whole: tuple[MPT, bytes, torch.Tensor, Path], length: int) -> None:
    model, raw, _, place = whole
    place.write_bytes(struct.pack("<Q", length) + raw[8:])
    assert "no header" in refusal(place, engine_on(model, storage="int4", num_pages=20))


def test_no_file(model: MPT, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nothing", engine_on(model))
    assert "cannot be read" in refusal(tmp_path, engine_on(model))


def test_any_safetensors_reader_opens_it(whole: tuple[MPT, bytes, torch.Tensor, Path]) -> None:
    _, raw, logits_V, place = whole
    place.write_bytes(raw)
    tensors = load_file(place)
    assert torch.equal(tensors["logits"], logits_V)
    assert tensors["keys.data_PWD"].shape[0] == int(tensors["is_live"].sum())


def test_only_its_owner_may_read_it(model: MPT, novel: list[int], place: Path) -> None:
    save_state(place, engine := engine_on(model), engine.open_book(novel[:50]))
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_refuses(model: MPT, novel: list[int], tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot be written \(No such file or directory\); make room"):
        save_state(tmp_path / "no" / "folder", engine := engine_on(model), engine.open_book(novel[:50]))
