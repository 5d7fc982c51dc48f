"""What commands share: arguments, completion, and how they say things."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from clsight.errors import ClsightError, UsageError, printable

DONE, FAILED, USAGE = 0, 1, 2

class _Folder(click.Path):
    """A run folder, by its path or URL."""

    def convert(self, value: Any, *_: Any) -> Path:
        """Where it is on this machine."""
        from clsight import store

        return store.folder(value)


run_folder = click.argument("run", type=_Folder())
as_json = click.option("--json", "as_json", is_flag=True,
                       help="The answer as JSON on stdout, for programs.")


def where(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where workers are."""
    for option in (
        click.option("--ray-address", metavar="ADDRESS",
                     help="Of the Ray cluster [default: RAY_ADDRESS, or one on this machine]."),
        click.option("--workers", type=click.IntRange(min=1), metavar="N",
                     help="How many processes or actors [default: one for each card; on "
                          "processors one here, and as many as have room on a cluster]."),
        click.option("--executor", type=click.Choice(["local", "ray"]), default="local",
                     show_default=True,
                     help="Where the work is done: on this machine, or on a Ray cluster."),
    ):
        command = option(command)
    return command


def example(*lines: str) -> str:
    """The closing part of a command's help; click keeps its lines as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """The values of an option that is given as NAME=VALUE, any number of times.

    Raises:
        UsageError: one is of another form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key or key in found:
            raise UsageError(f"{option} {item}: write NAME=VALUE, each name once")
        found[key] = value
    return found


def names_of_questions(_: Any, __: Any, incomplete: str) -> list[str]:
    """Completion: relations, queries and checks."""
    from clsight.database import KINDS, sql_files

    return sorted(name for kind in KINDS for name in sql_files(kind) if name.startswith(incomplete))


def names_of_models(context: click.Context, _: Any, incomplete: str) -> list[str]:
    """Completion: models of the run that stands before."""
    from clsight import plan as plans

    # An option without its value, as here, leaves arguments unread.
    given = [context.params.get("run"), *context.args]
    with suppress(ClsightError, StopIteration):
        run = _Folder().convert(next(one for one in given if one))
        return [name for name in plans.load(run).models if name.startswith(incomplete)]
    return []


def say_json(value: Any) -> None:
    """A value as JSON on stdout."""
    from clsight.output import as_json

    click.echo(as_json(value, indent=2))


def hint(*commands_and_purposes: str) -> None:
    """What may come next: commands, each followed by what it is for; for people alone."""
    if not sys.stderr.isatty():
        return
    commands, purposes = commands_and_purposes[::2], commands_and_purposes[1::2]
    width = max(map(len, commands))
    for i, (command, purpose) in enumerate(zip(commands, purposes, strict=True)):
        begin = "next: " if not i else "      "
        click.echo(printable(f"{begin}{command:<{width}}  {purpose}"), err=True)


def kept_of(run: Path) -> str:
    """What of a run is kept, for somebody who stopped it."""
    from clsight.status import kept

    try:
        return kept(run)
    except (ClsightError, OSError):
        return "what is complete is kept"
