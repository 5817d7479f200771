"""A small server: a random model over a tokenizer that was trained on a page of prose."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from epilogue.engine import Engine
from epilogue.model import MPT, AttentionConfig, MPTConfig
from epilogue.server import Settings, Worker, create_app
from epilogue.text import Tokenizer, train_tokenizer

PROSE = "The wind went round to the north in the night, and nobody could see the end of the pier by morning. " * 3

Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([PROSE], vocab_size=320)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> MPT:
    sizes: dict[str, Any] = {"d_model": 24, "n_heads": 3, "n_layers": 2, "max_seq_len": 64}
    config = MPTConfig(
        **sizes, vocab_size=tokenizer.vocab_size + 5, no_bias=True, attn_config=AttentionConfig(alibi=True)
    )
    mpt = MPT(config)
    mpt.init_weights(std=0.3, seed=0)
    return mpt


@pytest.fixture
def make_engine(model: MPT) -> Callable[..., Engine]:
    def make(**options: Any) -> Engine:
        return Engine(model, **({"num_pages": 400, "chunk_tokens": 32} | options))

    return make


@pytest.fixture
def serve(make_engine: Callable[..., Engine], tokenizer: Tokenizer) -> Iterator[Serve]:
    """Starts servers; keywords are the engine's, the worker's or the settings'."""
    with ExitStack() as stack:

        def start(
            *, engine: dict[str, Any] | None = None, worker: dict[str, Any] | None = None, **settings: Any
        ) -> TestClient:
            made = Worker(make_engine(**(engine or {})), tokenizer, **(worker or {}))
            app = create_app(made, Settings(**({"model_name": "little"} | settings)))
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            client.worker = made  # type: ignore[attr-defined]
            return client

        yield start


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()


@pytest.fixture
def work(make_engine: Callable[..., Engine], tokenizer: Tokenizer) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*, engine: dict[str, Any] | None = None, **options: Any) -> Worker:
        worker = Worker(make_engine(**(engine or {})), tokenizer, **options)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()
        assert worker.engine.pages.num_held == 0
