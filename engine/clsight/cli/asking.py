"""Commands that ask a run."""

import sys
from pathlib import Path

import click

from clsight.cli.options import (
    DONE,
    FAILED,
    as_json,
    example,
    hint,
    kept_of,
    names_of_questions,
    pairs,
    run_folder,
    say_json,
)
from clsight.errors import printable
from clsight.screen import log_on_stderr, progress_bar, shown_on
from clsight.stopping import stoppable

FORMATS = ("table", "json", "csv", "parquet", "arrow")


@click.command(epilog=example(
    "clsight query run", "clsight query run over_attended",
    "clsight query run examples -p form=yet --format json",
    'clsight query run "SELECT model, avg(margin) FROM predictions GROUP BY model"'))
@run_folder
@click.argument("name_or_sql", required=False, shell_complete=names_of_questions)
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE",
              help="A parameter of the query; may be repeated.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="table",
              show_default=True, help="How the answer is written to stdout.")
@as_json
def query(run: Path, name_or_sql: str | None, parameters: tuple[str, ...], format_: str,
          as_json: bool) -> None:
    """Ask a run: a named query, a relation, or one SELECT statement; alone, list what there is."""
    from clsight import database, output

    with database.connect(run) as connection:
        if name_or_sql is None:
            answer = database.catalogue()
        else:
            answer = database.query(connection, name_or_sql, pairs(parameters, "-p"))
        output.write(answer, "json" if as_json else format_, sys.stdout.buffer)
    if name_or_sql is None:
        hint(f"clsight query {run} NAME", "answers; parameters as -p KEY=VALUE")


@click.command(epilog=example("clsight status run", "clsight status run --json"))
@run_folder
@as_json
def status(run: Path, as_json: bool) -> int:
    """How far a run is: progress, rate, time left, retries, bad documents.

    Exits with 0 where it is complete, 3 where a process is at work, and 1 where it was stopped
    before its end, so that the same `clsight run` is needed once more.
    """
    from clsight import status as states

    found = states.status(run)
    if as_json:
        say_json(states.as_dict(found))
    else:
        click.echo("\n".join(printable(line) for line in states.lines(found)))
        _hint_next(run, found.state)
    return found.exit_code


def _hint_next(run: Path, state: str) -> None:
    if state == "complete":
        hint(f"clsight query {run} findings", "what stands out in each model's errors")
    elif state == "stopped":
        hint("the same clsight run", "goes on where it was stopped")


@click.command(epilog=example("clsight verify run", "clsight verify run --repair"))
@run_folder
@click.option("--repair", is_flag=True, help="Make again what is wrong, and only that.")
@as_json
def verify(run: Path, repair: bool, as_json: bool) -> int:
    """Is everything there, byte for byte as it was written, and as planned?

    Reads every shard and asks every check; names what is wrong, a line each. Exits with 0 where
    nothing is, else with 1.
    """
    from clsight import verify as verification

    with progress_bar() as bar, log_on_stderr():
        if repair:
            with stoppable(lambda: kept_of(run)):
                found = verification.repair(run, shown_on(bar))
        else:
            shown = shown_on(bar, "files")
            found = verification.verify(run, lambda n, total: shown("verify", n, total))
    if as_json:
        say_json({"run": f"{run}", "problems": [str(problem) for problem in found]})
    else:
        for problem in found:
            click.echo(printable(str(problem)))
    click.echo(f"{run}: {len(found) or 'no'} problem{'s'[: len(found) != 1]}", err=True)
    if found and not repair:
        hint(f"clsight verify {run} --repair", "makes that again, and only that")
    return FAILED if found else DONE
