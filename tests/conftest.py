"""What holds for every test: fixed seeds, one thread a worker, no network; and the shared material."""

import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

os.environ["HF_HUB_OFFLINE"] = "1"  # a hub client says at once that it is offline, also in child processes
if IS_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

_test_numbers = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compilers for a GPU say of themselves and of each other is no error of a test that runs them."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine."""


def is_on_this_machine(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connecting to another machine raises, and so does asking a name server for it."""

    def guarded(real: Any) -> Any:
        def connect(sock: socket.socket, address: Any) -> Any:
            if sock.family != socket.AF_UNIX and not is_on_this_machine(address[0]):
                raise NetworkBlocked(f"a test wanted to connect to {address[0]}; tests run without a network")
            return real(sock, address)

        return connect

    real_getaddrinfo = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and not is_on_this_machine(name):
            raise NetworkBlocked(f"a test wanted the address of {name}; tests run without a network")
        return real_getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def own_states(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test keeps of a book lands in the user's folders, nor in another test's."""
    monkeypatch.setenv("EPILOGUE_STATES", str(tmp_path_factory.getbasetemp() / "states" / str(next(_test_numbers))))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in every run; numpy and torch only where a test has loaded them."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        # Small tensors gain nothing from threads, and threads that wait for each other on a busy machine lose minutes.
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_corpus() -> Path:
    """The folder of public-domain novels that lies beside a developer's checkout."""
    return _shared("corpus")


@pytest.fixture(scope="session")
def neox_tokenizer() -> Path:
    """The folder with GPT-NeoX-20B's tokenizer.json that lies beside a developer's checkout."""
    return _shared("tokenizer/gpt-neox-20b")


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs shared/{name} beside the checkout")
    return path


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which a suite in the background of a shell lacks, and what it starts."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
