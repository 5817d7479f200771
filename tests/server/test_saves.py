"""What front ends save with the server, as KoboldCpp has it."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from epilogue.server.saves import Save, Saves

DATA = "/api/extra/data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "saves"


@pytest.fixture
def desk(serve: Any, folder: Path) -> TestClient:
    return serve(saves=folder)


def test_what_is_saved_can_be_listed_and_loaded(desk: TestClient, folder: Path) -> None:
    assert desk.get("/api/extra/version").json()["savedata"] is True
    assert desk.post(f"{DATA}/list").json() == [""] * 12
    assert not folder.exists()
    story = {"slot": 3, "format": "lzma", "title": "Ein Märchen", "data": "abc" * 1000}
    assert desk.post(f"{DATA}/save", json=story).json() == {"success": True, "error": ""}
    assert desk.post(f"{DATA}/save", json={"slot": "11", "data": "x"}).json()["success"] is True
    titles = desk.post(f"{DATA}/list").json()
    assert (titles[3], titles[11], len(titles)) == ("Ein Märchen", "Untitled Save", 12)
    wanted = {name: story[name] for name in ("title", "format", "data")}
    assert desk.post(f"{DATA}/load", json={"slot": "3"}).json() == {"success": True, "data": wanted}
    assert desk.post(f"{DATA}/save", json={"slot": 3, "data": ""}).json()["success"] is True
    assert desk.post(f"{DATA}/load", json={"slot": 3}).json() == {"success": False, "data": None}
    assert [path.name for path in folder.iterdir()] == ["slot-11.json"]


@pytest.mark.parametrize("slot", [-1, 12, 10**30, "../../x", "", None, 1.5, [], {}])
def test_there_are_twelve_slots(desk: TestClient, folder: Path, slot: object) -> None:
    answer = desk.post(f"{DATA}/save", json={"slot": slot, "data": "x"})
    assert answer.status_code == 400
    assert answer.json() == {"success": False, "error": "slot must be 0 to 11"}
    assert desk.post(f"{DATA}/load", json={"slot": slot}).json() == {"success": False, "data": None}
    assert not folder.exists()


def test_a_story_has_a_limit(desk: TestClient, folder: Path) -> None:
    answer = desk.post(f"{DATA}/save", json={"slot": 0, "data": "x" * (10 * 2**20 + 1)})
    assert answer.status_code == 400
    assert "longer than" in answer.json()["error"]
    assert not folder.exists()


def test_nothing_is_saved_where_nobody_asked_for_it(client: TestClient) -> None:
    assert client.get("/api/extra/version").json()["savedata"] is False
    assert client.post(f"{DATA}/list").json() == []
    assert client.post(f"{DATA}/load", json={"slot": 0}).json() == {"success": False, "data": None}
    answer = client.post(f"{DATA}/save", json={"slot": 0, "data": "x"})
    assert answer.status_code == 400
    assert "start the server with --saves" in answer.json()["error"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"title": 1}', b"[" * 100_000])
def test_a_file_that_is_no_save_is_an_empty_slot(desk: TestClient, folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "slot-00.json").write_bytes(content)
    assert desk.post(f"{DATA}/list").json() == [""] * 12
    assert desk.post(f"{DATA}/load", json={"slot": 0}).json()["success"] is False
    assert desk.post(f"{DATA}/save", json={"slot": 0, "data": "x"}).json()["success"] is True


def test_a_full_disk_leaves_the_old_story(desk: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = Saves(folder)
    saves.store(0, old := Save("old", "", "old"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("epilogue.checkpoint.staging.os.fsync", full)
    answer = desk.post(f"{DATA}/save", json={"slot": 0, "data": "new"})
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]
    assert saves.load(0) == old
    assert len(list(folder.iterdir())) == 1
