"""The verbs below `epilogue shards`."""

import typer

from epilogue.cli import options

shards_app = typer.Typer(help="Look at token shards.")


@shards_app.callback(invoke_without_command=True)
def _shards(context: typer.Context) -> None:
    """Look at token shards."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@shards_app.command("inspect")
def inspect_shards(folder: options.ShardFolder, json: options.Json = False) -> None:
    """Show what shards hold: books and their lengths, tokens, tokenizer, files."""
    from epilogue.cli.shards import run_inspect

    run_inspect(folder, as_json=json)


@shards_app.command("verify")
def verify_shards(folder: options.ShardFolder, json: options.Json = False) -> None:
    """Read every file and hold it to its SHA-256; what is damaged is named."""
    from epilogue.cli.shards import run_verify

    run_verify(folder, as_json=json)
