"""kill -9 in the middle of a save: what was there before, or what was to be there, is whole."""

import subprocess
import sys
from pathlib import Path

import pytest

KILLER = """
import os, random, signal, sys, time, torch
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
chance, num_cut_short = random.Random(0), 0
for trial in range(30):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            os.write(writer, b".")
            for index, length in enumerate((900, 600)):
                saves.store(0, stories[index])
                found = library.open(engine, old)
                library.keep(engine, texts[length], replaces=found)
                engine.close(found.sequence)
    os.read(reader, 1)  # it has begun
    time.sleep(chance.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    num_cut_short += any(True for folder in (library.folder, saves.folder) for _ in folder.glob(".*.partial"))
    found = library.open(engine, old)
    length = found.sequence.num_tokens
    assert torch.equal(found.sequence.logits_V, texts[length].logits_V), trial
    assert all(kept.header for kept in library.all()), trial
    assert saves.load(0) in stories, trial
    engine.close(found.sequence)
library.keep(engine, texts[900])
saves.store(0, stories[0])
left = [path.name for folder in (library.folder, saves.folder) for path in folder.glob(".*")]
print(num_cut_short > 3, left)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_at_any_moment_there_is_a_whole_state_and_a_whole_save(tmp_path: Path) -> None:
    """Thirty processes that do nothing but save, each killed with SIGKILL after some milliseconds."""
    command = [sys.executable, "-c", KILLER, str(tmp_path / "states"), str(tmp_path / "saves")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "True []\n"), done.stderr
