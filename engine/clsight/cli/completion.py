"""Completion in the shell: commands, options, relations and queries, models of a run."""

import click
from click.shell_completion import get_completion_class

from clsight.cli.options import example


@click.command(epilog=example(
    'eval "$(clsight completion bash)"     # in ~/.bashrc',
    'eval "$(clsight completion zsh)"      # in ~/.zshrc',
    "clsight completion fish > ~/.config/fish/completions/clsight.fish"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what lets a shell complete commands, options, relations and models."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "clsight", "_CLSIGHT_COMPLETE").source())
