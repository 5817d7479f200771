"""The options of `serve` alone, with their help. Defaults stand in commands.py."""

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Listen here.")]
Port = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Listen on this port.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", metavar="KEY", envvar="EPILOGUE_API_KEY", help="Let in only who sends it as a bearer token."
    ),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen to other machines without a key.")]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="ORIGIN",
        help="Let pages of this origin call; any may, if left out. Several times for several.",
    ),
]
NoKeep = Annotated[bool, typer.Option("--no-keep", help="Keep no books on disk, only in memory until Ctrl-C.")]
Saves = Annotated[
    Path | None,
    typer.Option(
        "--saves",
        metavar="DIR",
        help="Let front ends save stories here, in twelve slots as KoboldCpp has; nowhere if left out.",
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        "--grace",
        metavar="SECONDS",
        min=0,
        help="When the server is stopped, what is being written goes on so long; then it ends with what there is.",
    ),
]
Log = Annotated[
    bool, typer.Option("--log", help="Tell of every request on stderr, a line of JSON each, without its text.")
]
ContextTokens = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        min=256,
        help="Tell clients that prompts may be so long: they leave out the beginning of longer ones, the server leaves"
        " out nothing. Four times what the model was trained on if left out; what fits in memory at most.",
    ),
]
