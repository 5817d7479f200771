from pathlib import Path

import pytest

from epilogue.text import Tokenizer, train_tokenizer

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "corpus"
NEOX = CORPUS.parent / "tokenizer" / "gpt-neox-20b" / "tokenizer.json"


@pytest.fixture(scope="session")
def corpus() -> Path:
    if not CORPUS.is_dir():
        pytest.skip(f"no corpus at {CORPUS}")
    return CORPUS


@pytest.fixture(scope="session")
def neox() -> Tokenizer:
    if not NEOX.is_file():
        pytest.skip(f"no GPT-NeoX tokenizer at {NEOX}")
    return Tokenizer.from_file(NEOX)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The sea, the sea! The “old” sea — élan … the end of the sea. " * 5], vocab_size=300)
