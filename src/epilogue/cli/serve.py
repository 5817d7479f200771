"""`epilogue serve`: the engine behind HTTP, for KoboldAI's front ends and everything that speaks OpenAI's API."""

import asyncio
import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from rich.console import Console

from epilogue.checkpoint import load_tokenizer
from epilogue.cli.settings import name_of, open_engine, open_model
from epilogue.engine import Library
from epilogue.errors import RequestError

# For clients to take in what was written last; who does not read loses it.
_LAST_WORDS_S = 5


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the command line was given."""

    model: str | None
    host: str
    port: int
    api_key: str | None
    is_insecure: bool
    allowed_origins: tuple[str, ...]
    device: str
    dtype: str
    max_seq_len: int | None
    kv_storage: str
    epsilon: float
    context_tokens: int | None
    saves: Path | None
    grace_s: float
    """How long what is being written goes on after Ctrl-C or a signal to end."""
    logs_requests: bool
    library: Library | None
    """Where books are kept on disk; None keeps none."""


def run_serve(options: ServeOptions) -> None:
    """Serve until Ctrl-C.

    Raises:
        RequestError: another machine could come in without a key, the port is taken, or the packages are missing.
        EpilogueError: the model is not usable.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    check_reach(options.host, api_key=options.api_key, is_insecure=options.is_insecure)
    try:
        import uvicorn

        from epilogue.server import Settings, Worker, create_app, write_log
    except ImportError as error:
        raise RequestError(f"{error.name} is not installed; run pip install 'epilogue[server]'") from error
    with console.status("loading the model"):
        checkpoint = open_model(
            options.model, device=options.device, dtype=options.dtype, max_seq_len=options.max_seq_len
        )
        tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
        engine = open_engine(checkpoint, storage=options.kv_storage, epsilon=options.epsilon)
        worker = Worker(engine, tokenizer, library=options.library, model_name=checkpoint.directory.name)
    settings = Settings(
        model_name=checkpoint.directory.name,
        api_key=options.api_key,
        allowed_origins=options.allowed_origins,
        context_tokens=options.context_tokens,
        saves=options.saves,
    )
    # Before anything is said: who reads the lines may connect at once, and waits until the server takes it up.
    door = _open_door(options.host, options.port)
    place = f"http://{options.host}:{door.getsockname()[1]}"
    where = f"; books are kept in {options.library.folder}" if options.library else ""
    console.print(
        f"{name_of(options.model)}: room for {worker.most_tokens:,} tokens{where}", style="dim", soft_wrap=True
    )
    console.print(
        f"Kobold clients connect to {place}, OpenAI clients to {place}/v1; Ctrl-C stops", style="dim", soft_wrap=True
    )
    write_log(requests=options.logs_requests)
    config = uvicorn.Config(create_app(worker, settings), log_config=None, access_log=False)

    class Server(uvicorn.Server):
        """Ends streams as any other: front ends take a broken one for a failure, and may throw away what came."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            worker.refuse()
            asyncio.get_running_loop().call_later(options.grace_s, worker.cancel_all)
            self.config.timeout_graceful_shutdown = ceil(options.grace_s) + _LAST_WORDS_S
            await super().shutdown(sockets)

    with suppress(KeyboardInterrupt):  # which is how a server is stopped: all has been seen to
        Server(config).run(sockets=[door])


def _open_door(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RequestError(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another --port, or 0 for any that is free"
        ) from error


def check_reach(host: str, *, api_key: str | None, is_insecure: bool) -> None:
    """Refuse to let other machines in without a key, unless that is asked for.

    Raises:
        RequestError: it is not.
    """
    if not (api_key or is_insecure or _is_loopback(host)):
        raise RequestError(
            f"--host {host} lets other machines in; give --api-key KEY, or --insecure if anybody may come"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
