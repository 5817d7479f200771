"""kill -9 in the middle of a save: what was there before, or what was to be there, is whole."""

import subprocess
import sys
from pathlib import Path

import pytest

KILLER = """
import itertools, os, resource, signal, sys, torch
from pathlib import Path
from epilogue.engine import Engine, Library
from epilogue.model import MPT, AttentionConfig, MPTConfig
from epilogue.server.saves import Save, Saves

torch.set_num_threads(1)
config = MPTConfig(d_model=24, n_heads=3, n_layers=2, max_seq_len=16, vocab_size=61, no_bias=True,
                   attn_config=AttentionConfig(alibi=True))
model = MPT(config)
model.init_weights(std=0.3, seed=0)
engine = Engine(model, num_pages=200, epsilon=1e-4, chunk_tokens=400)
library, saves = Library(Path(sys.argv[1]), limit_bytes=10**9), Saves(Path(sys.argv[2]))
old, new = ([i % 61 for i in range(length)] for length in (600, 900))
texts = {len(ids): engine.open_book(ids) for ids in (old, new)}
stories = [Save(word, "", word * 100_000) for word in ("old", "new")]
library.keep(engine, texts[600])
saves.store(0, stories[0])

def die_at_step(steps):  # before the file is opened, flushed, renamed, ...
    left = itertools.count(steps, -1)

    def step(event, *_):
        if event in ("open", "fsync", "os.rename", "os.remove") and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(step)
    flush = os.fsync
    os.fsync = lambda descriptor: (step("fsync"), flush(descriptor))


def die_at_byte(num_bytes):  # in the middle of a write, by the system's hand
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def child_is_killed(die, when):
    child = os.fork()
    if child == 0:
        found = library.open(engine, old)
        die(when)
        saves.store(0, stories[1])
        library.keep(engine, texts[900], replaces=found)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


largest = max(file.stat().st_size for folder in (library.folder, saves.folder) for file in folder.iterdir())
moments = [(die_at_byte, largest * part // 8) for part in range(8)] + [(die_at_step, steps) for steps in range(1000)]
num_cut_short = 0
for die, when in moments:
    was_killed = child_is_killed(die, when)
    num_cut_short += any(True for folder in (library.folder, saves.folder) for _ in folder.glob(".*.partial"))
    found = library.open(engine, old)
    assert torch.equal(found.sequence.logits_V, texts[found.sequence.num_tokens].logits_V), (die, when)
    assert all(kept.header for kept in library.all()), (die, when)
    assert saves.load(0) in stories, (die, when)
    if not was_killed:
        assert die is die_at_step and found.sequence.num_tokens == 900 and saves.load(0) == stories[1]
        break
    library.keep(engine, texts[600], replaces=found)
    saves.store(0, stories[0])
    engine.close(found.sequence)
left = [path.name for folder in (library.folder, saves.folder) for path in folder.glob(".*")]
print(was_killed, num_cut_short > 10, left)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_at_any_moment_there_is_a_whole_state_and_a_whole_save(tmp_path: Path) -> None:
    """A process that saves is killed at one step after another: at every file's opening, flush and renaming, and
    in the middle of what it writes, until one comes through.
    """
    command = [sys.executable, "-c", KILLER, str(tmp_path / "states"), str(tmp_path / "saves")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "False True []\n"), done.stderr
