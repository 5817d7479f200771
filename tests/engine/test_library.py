"""The library: finds a book by how it begins, keeps its limit, and survives whoever else uses the folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from epilogue.checkpoint import staging
from epilogue.engine import Engine, Library
from epilogue.errors import StateError
from epilogue.model import MPT


def engine_on(model: MPT, **changes: Any) -> Engine:
    return Engine(model, **{"num_pages": 100, "epsilon": 1e-4, "chunk_tokens": 200} | changes)


def book(seed: int, length: int = 300) -> list[int]:
    return torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def engine(tiny_mpt) -> Engine:
    return engine_on(tiny_mpt())


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "a" / "b", limit_bytes=10**9)


def keep(library: Library, engine: Engine, ids: list[int], **options: Any) -> Any:
    text = engine.open_book(ids)
    kept = library.keep(engine, text, **options)
    engine.close(text)
    return kept


def age(kept: Any, days: int) -> None:
    then = kept.used_at.timestamp() - days * 86400
    os.utime(kept.path, (then, then))


def test_nothing_is_there_at_first(library: Library, engine: Engine) -> None:
    assert library.all() == []
    assert library.open(engine, book(0)) is None
    assert library.clear() == []
    assert not library.folder.exists()


def test_a_book_is_found_by_its_beginning_whatever_it_is_called(library: Library, engine: Engine) -> None:
    for seed in range(3):
        keep(library, engine, book(seed), title=f"Book {seed}", model="tiny")
    found = library.open(engine, [*book(1)[:250], 1, 2, 3])
    assert found is not None
    assert (found.common_tokens, found.kept.header.title, found.sequence.ids) == (250, "Book 1", book(1))
    assert library.all()[0].header.title == "Book 1"
    first_differs = [60 - book(1)[0], *book(1)[1:]]
    assert library.open(engine, first_differs) is None or book(0)[0] == first_differs[0]


def test_other_settings_and_models_have_states_of_their_own(library: Library, engine: Engine, tiny_mpt) -> None:
    keep(library, engine, book(0))
    for other in (engine_on(engine.model, storage="int8"), engine_on(engine.model, epsilon=0)):
        assert library.open(other, book(0)) is None
        keep(library, other, book(0))
        assert library.open(other, book(0)) is not None
    assert library.open(engine_on(tiny_mpt(seed=1)), book(0)) is None
    assert len(library.all()) == 3


def test_a_later_form_replaces_the_earlier_one(library: Library, engine: Engine) -> None:
    keep(library, engine, book(0))
    found = library.open(engine, longer := book(0) + book(5, 100))
    engine.revise(found.sequence, longer)
    library.keep(engine, found.sequence, replaces=found)
    assert [kept.header.num_tokens for kept in library.all()] == [400]
    found = library.open(engine, other := book(0)[:150] + book(6))
    engine.revise(found.sequence, other)
    library.keep(engine, found.sequence, replaces=found)
    assert sorted(kept.header.num_tokens for kept in library.all()) == [400, 450], "only its beginning was the same"


def test_of_two_forms_the_one_with_more_to_go_on_from(library: Library, tiny_mpt) -> None:
    """The longer has more in common, but its pages there are gone; it is not replaced by what was interrupted."""
    engine = engine_on(tiny_mpt(n_heads=1, attn_config={"alibi_bias_max": 1}), undo_tokens=0, spacings=())
    keep(library, engine, whole := book(0, 1500))
    edited = [*whole[:900], *book(1, 600)]
    found = library.open(engine, edited)
    assert found is None, "nothing of it can be gone on from"
    keep(library, engine, edited[:500])
    found = library.open(engine, edited)
    assert (found.common_tokens, found.sequence.num_tokens) == (500, 500)
    assert len(library.all()) == 2
    whole_again = library.open(engine, whole)
    assert whole_again.sequence.num_tokens == 1500
    engine.revise(whole_again.sequence, whole[:800])
    library.keep(engine, whole_again.sequence, replaces=whole_again)
    assert len(library.all()) == 3


def test_the_least_lately_used_goes_first(library: Library, engine: Engine) -> None:
    kept = [keep(library, engine, book(seed)) for seed in range(3)]
    for days, state in enumerate(reversed(kept)):
        age(state, days)  # the first is the oldest
    assert library.open(engine, book(0)) is not None  # and was used just now
    size = kept[0].num_bytes
    small = Library(library.folder, limit_bytes=3 * size + size // 2)
    new = keep(small, engine, book(3))
    assert {state.id for state in small.all()} == {kept[0].id, kept[2].id, new.id}
    smaller = Library(library.folder, limit_bytes=size + size // 2)
    newest = keep(smaller, engine, book(4))
    assert [state.id for state in smaller.all()] == [newest.id]


def test_a_state_larger_than_the_limit_removes_nothing(library: Library, engine: Engine) -> None:
    keep(library, engine, book(0))
    small = Library(library.folder, limit_bytes=1000)
    with pytest.raises(StateError, match="raise the limit or use another storage"):
        keep(small, engine, book(1))
    assert len(library.all()) == 1


def test_the_usual_limit_is_a_share_of_the_disk(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    assert 0 < Library(tmp_path / "not" / "there").limit_bytes() <= disk.f_bavail * disk.f_frsize // 9


def test_removing(library: Library, engine: Engine) -> None:
    kept = [keep(library, engine, book(seed)) for seed in range(2)]
    for wrong in ("", "zz", "../", "*"):
        with pytest.raises(StateError, match=r"have an id that begins with"):
            library.remove(wrong)
    assert library.remove(kept[0].id[:12]).id == kept[0].id
    assert [state.id for state in library.clear()] == [kept[1].id]
    assert list(library.folder.iterdir()) == []


def test_files_that_are_not_ours_stay(library: Library, engine: Engine) -> None:
    kept = keep(library, engine, book(0))
    for name in ("notes.txt", "model.safetensors", ".hidden.partial"):
        (library.folder / name).write_text("mine")
    kept.path.write_bytes(b"nonsense")
    assert [state.problem != "" for state in library.clear_unusable()] == [True]
    library.clear()
    assert len(list(library.folder.iterdir())) == 3


def test_a_damaged_state_is_refused_once_and_removed(library: Library, engine: Engine) -> None:
    kept = keep(library, engine, book(0))
    raw = bytearray(kept.path.read_bytes())
    raw[-100] ^= 1
    kept.path.write_bytes(raw)
    with pytest.raises(StateError, match="its checksums are wrong"):
        library.open(engine, book(0))
    assert library.open(engine, book(0)) is None
    assert library.all() == []


WRITER = """
import sys, torch
from epilogue.checkpoint import staging
from epilogue.engine import Engine, Library, book_state
from epilogue.model import MPT, AttentionConfig, MPTConfig
from pathlib import Path

folder, length, dies = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "dies"
torch.set_num_threads(1)
config = MPTConfig(d_model=24, n_heads=3, n_layers=2, max_seq_len=16, vocab_size=61, no_bias=True,
                   attn_config=AttentionConfig(alibi=True))
model = MPT(config)
model.init_weights(std=0.3, seed=0)
engine = Engine(model, num_pages=100, epsilon=1e-4, chunk_tokens=200)
text = engine.open_book([i % 61 for i in range(length)])
if dies:
    import os
    book_state._pages = lambda *_: os.kill(os.getpid(), 9)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    Library(folder, limit_bytes=10**9).keep(engine, text)
"""


def start_writer(folder: Path, length: int, manner: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(folder), str(length), manner]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: "subprocess.Popen[str]") -> int:
    process.stdin.write("go\n")
    process.communicate(timeout=60)
    return process.returncode


def test_two_writers_at_once(library: Library, engine: Engine) -> None:
    ids = [i % 61 for i in range(300)]
    other = start_writer(library.folder, 300, "lives")
    text = engine.open_book(ids)
    other.stdin.write("go\n")
    other.stdin.flush()
    while other.poll() is None:
        library.keep(engine, text)
        found = library.open(engine, ids)
        assert found is not None
        assert torch.equal(found.sequence.logits_V, text.logits_V)
        engine.close(found.sequence)
    other.communicate()
    assert other.returncode == 0
    assert len(list(library.folder.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_in_the_middle_of_a_save(library: Library, engine: Engine) -> None:
    library.folder.mkdir(parents=True)
    assert finish(start_writer(library.folder, 300, "dies")) == -9
    left = list(library.folder.iterdir())
    assert [path.name.endswith(".partial") for path in left] == [True]
    assert library.all() == []
    assert library.open(engine, [i % 61 for i in range(300)]) is None
    keep(library, engine, book(0))
    assert [path.suffix for path in library.folder.iterdir()] == [".safetensors"]


def test_an_interrupted_or_failing_save_leaves_the_old_state(
    library: Library, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = keep(library, engine, book(0)).path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.os, "fsync", full)
    with pytest.raises(StateError, match=r"cannot be written \(No space left on device\); make room on that disk"):
        keep(library, engine, book(0))
    monkeypatch.undo()
    assert [path.read_bytes() for path in library.folder.iterdir()] == [old]
