"""The verbs below `epilogue states`."""

import typer
from typer.core import TyperGroup

from epilogue.cli import options

states_app = typer.Typer(help="List and remove what is kept of books that were read.")


@states_app.callback(invoke_without_command=True)
def _states(context: typer.Context) -> None:
    """List and remove what is kept of books that were read; without a verb, list it."""
    if context.invoked_subcommand is None:
        # By way of its options, of which one has a variable of the environment.
        assert isinstance(context.command, TyperGroup)
        listing = context.command.commands["list"]
        with listing.make_context("list", [], parent=context) as within:
            listing.invoke(within)


@states_app.command("list")
def list_states(
    states: options.States = None,
    states_gib: options.StatesGib = None,
    json: options.Json = False,
) -> None:
    """Show what is kept, the book used last first."""
    from epilogue.cli.shelf import library_at
    from epilogue.cli.states import run_list

    run_list(library_at(states, states_gib), as_json=json)


@states_app.command("remove")
def remove_states(ids: options.Ids, states: options.States = None) -> None:
    """Remove some of what is kept."""
    from epilogue.cli.shelf import library_at
    from epilogue.cli.states import run_remove

    run_remove(library_at(states, None), ids)


@states_app.command("clear")
def clear_states(states: options.States = None) -> None:
    """Remove all that is kept."""
    from epilogue.cli.shelf import library_at
    from epilogue.cli.states import run_clear

    run_clear(library_at(states, None))
