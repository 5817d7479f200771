"""schemathesis against the OpenAPI schema: whatever fits it or does not is answered, and as the schema says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from epilogue.engine import Engine, Library
from epilogue.server import Settings, Worker, create_app
from epilogue.text import Tokenizer
from server.material import WAIT_S

schemathesis = pytest.importorskip("schemathesis")
NUM_CASES = 4
LENGTHS = ("max_length", "max_new_tokens", "max_tokens", "n_predict", "max_completion_tokens")


def shorten(body: Any) -> None:
    """What is legal and long is somebody else's test (test_clients.py)."""
    if not isinstance(body, dict):
        return
    for name in LENGTHS:
        if isinstance(body.get(name), int) and 8 < body[name] <= 1_000_000:
            body[name] = 8
    if not any(name in body for name in LENGTHS):
        body["max_length"] = 8


def test_every_operation_keeps_to_its_schema(
    make_engine: Callable[..., Engine], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checks = schemathesis.checks
    wanted = [checks.load_all_checks(), checks.CHECKS.get_all()][1]
    names = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    wanted = [check for check in wanted if check.__name__ in names]
    assert len(wanted) == len(names)
    worker = Worker(make_engine(), tokenizer, library=Library(tmp_path / "states", limit_bytes=2**28))
    app = create_app(worker, Settings(model_name="little", saves=tmp_path / "saves"))
    statuses: list[int] = []

    def answered(case: Any) -> None:
        shorten(case.body)
        response = case.call(timeout=WAIT_S)
        statuses.append(response.status_code)
        # 503 and 507 say that there is no place or no memory, for a request that is one.
        assert response.status_code < 500 or response.status_code in (503, 507), response.text
        case.validate_response(response, checks=wanted)

    every = settings(
        max_examples=NUM_CASES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    operations = [found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()]
    for operation in operations:
        if "/latest/" in operation.path:  # the same as /v1/
            continue
        modes = schemathesis.GenerationMode
        for mode in (modes.POSITIVE, modes.NEGATIVE) if operation.body else (modes.POSITIVE,):
            every(given(case=operation.as_strategy(generation_mode=mode))(answered))()
    assert sum(status >= 400 for status in statuses) > 40
    assert sum(status < 300 for status in statuses) > 0
