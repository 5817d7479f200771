"""The `epilogue` command from outside: what holds for every verb, however it ends.

Text goes to stdout, everything else to stderr. What is wrong in the world or on the command line is one sentence and
exit code 2; `--debug` anywhere shows the traceback above it. Ctrl-C is exit code 130. A reader of stdout that goes away
ends the program without a word.
"""

import io
import sys
import traceback
from collections.abc import Sequence

import typer

from epilogue.cli.commands import app
from epilogue.errors import EpilogueError

_INTERRUPTED = 130
# Typer has carried click under more than one name; these are its base class of usage errors, under any of them.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: in place of the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in options
    if debug:
        given.remove("--debug")
    _never_fail_to_print()
    sys.exit(_run(given, debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        code = int(app(arguments, prog_name="epilogue", standalone_mode=False) or 0)
    except typer.Abort:  # what older versions of Typer make of Ctrl-C
        code = _INTERRUPTED
    except (_UsageError, EpilogueError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        typer.echo(f"epilogue: {_sentence(error)}", err=True)
        return 2
    if code == _INTERRUPTED:  # a verb that had begun its work has said more, and left by SystemExit
        typer.echo("epilogue: stopped before anything was done", err=True)
    return code


def _sentence(error: BaseException) -> str:
    """What is wrong, in one line."""
    if isinstance(error, _UsageError):
        message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else "epilogue"
        return " ".join(f"{message[:1].lower()}{message[1:]}; `{verb} --help` shows what there is".split())
    if isinstance(error, OSError):
        what = error.strerror or error
        where = f" {error.filename}" if error.filename else ""
        return f"the system refuses{where} ({what}); check that the place exists, is yours and has room"
    return " ".join(str(error).split())


def _never_fail_to_print() -> None:
    """A terminal of another encoding shows question marks for what it does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
