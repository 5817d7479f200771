"""A tiny random checkpoint with a tokenizer of its own, a short book, and the command line called in this process."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.material import BOOK, Outcome, Run
from epilogue.checkpoint import save_checkpoint
from epilogue.cli.main import main
from epilogue.model import MPT, NAMED_SIZES, AttentionConfig, MPTConfig
from epilogue.text import Tokenizer, train_tokenizer


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `epilogue ARGUMENTS`, by choice with something on standard input."""

    def call(*arguments: object, stdin: bytes | None = None) -> Outcome:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return call


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([BOOK * 3], vocab_size=320)


def save_tiny(directory: Path, tokenizer: Tokenizer, config: MPTConfig) -> Path:
    config = replace(config, vocab_size=tokenizer.vocab_size)
    model = MPT(config)
    model.init_weights(std=0.3, seed=0)
    save_checkpoint(directory, model.state_dict(), config)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A checkpoint of 64 trained tokens; its text is nonsense."""
    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny", tokenizer, NAMED_SIZES["tiny"])


@pytest.fixture(scope="session")
def with_positions(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The same with learned positions."""
    config = replace(NAMED_SIZES["tiny"], attn_config=AttentionConfig(alibi=False))
    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "positions", tokenizer, config)


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("books") / "pier.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path
