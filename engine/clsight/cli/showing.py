"""Commands that show a run, or hand it to other tools."""

from pathlib import Path
from typing import Any

import click

from clsight.cli.options import (
    as_json,
    example,
    hint,
    names_of_models,
    names_of_questions,
    pairs,
    run_folder,
    say_json,
)
from clsight.errors import printable


@click.command(epilog=example(
    "clsight heatmap run --model bert --document 17 -o bert-17.png",
    "clsight heatmap run --model bert --document 17 --heads all -o heads.pdf",
    "clsight heatmap run --model bert --model roberta --document 17 -o both.svg"))
@run_folder
@click.option("--model", "models", multiple=True, required=True,
              shell_complete=names_of_models,
              help="A model of the run; may be repeated, for pictures side by side on the same "
                   "words.")
@click.option("--document", required=True, metavar="ID", help="A document's id.")
@click.option("--heads", type=click.Choice(["all", "uniform", "classifier", "projected"]),
              default="uniform", show_default=True,
              help="A panel for each head, the mean over heads, or the mean weighted as the scores "
                   "of that name.")
@click.option("--layer", type=int, default=-1, metavar="N",
              help="From 0, or from the end with -1 [default: the last].")
@click.option("--words", is_flag=True,
              help="Words instead of pieces; always so for several models.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Picture to write: .png, .svg or .pdf.")
@as_json
def heatmap(run: Path, models: tuple[str, ...], document: str, output: Path, as_json: bool,
            **how: Any) -> None:
    """Draw the attention within one document: who looks at what, by pieces or by words."""
    from clsight.heatmap import draw
    from clsight.run_folder import open_run

    draw(open_run(run), models, document, output, **how)
    _say_written(output, as_json)


@click.command(epilog=example("clsight report run -o report.html"))
@run_folder
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The page to write, .html.")
@as_json
def report(run: Path, output: Path, as_json: bool) -> None:
    """Write the dashboard as one HTML file that works offline, from a mail attachment as well."""
    from clsight import report as reports

    reports.write(run, output)
    _say_written(output, as_json)
    hint(f"clsight serve {run}", "the same page with all documents")


@click.command(epilog=example(
    "clsight serve run", "clsight serve run --host 0.0.0.0 --port 8080 --allow-sql",
    "curl '127.0.0.1:8000/api/queries/examples?form=yet&format=csv'"))
@run_folder
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; any that others can reach needs a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
              help="Port to listen on; 0 for any that is free.")
@click.option("--token", envvar="CLSIGHT_TOKEN", show_envvar=True,
              help="What requests must know; where a host needs one and none is given, one is made "
                   "up and said at the start.")
@click.option("--allow-sql", is_flag=True,
              help="Answer free SELECT statements too, each in a process with limits.")
@as_json
def serve(run: Path, host: str, port: int, token: str | None, allow_sql: bool,
          as_json: bool) -> None:
    """The dashboard, and every relation and query as JSON, CSV, Arrow and Parquet, over HTTP.

    Read-only. /openapi.json describes all addresses; see the README for limits.
    """
    from clsight.serve import serve as serve_run

    serve_run(run, host, port, token, allow_sql, say_json if as_json else None)


@click.command(epilog=example(
    "clsight export run words -o words.parquet",
    "clsight export run word_statistics -o delta:tables/word_statistics",
    "clsight export run words -o postgresql://me@localhost/attention --run-id monday"))
@run_folder
@click.argument("relation", shell_complete=names_of_questions)
@click.option("-o", "--output", required=True, metavar="TARGET",
              help="A .parquet, .csv, .jsonl, .ndjson or .arrow file; a .duckdb or .db file; "
                   "delta:FOLDER; or postgresql://USER@HOST/DATABASE (password: PGPASSWORD, "
                   "~/.pgpass).")
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE",
              help="A parameter of the query; may be repeated.")
@click.option("--table", metavar="NAME",
              help="Name of the table in PostgreSQL or DuckDB [default: RELATION].")
@click.option("--run-id", metavar="NAME",
              help="Name of the run in PostgreSQL and Delta tables, whose rows of this name are "
                   "replaced [default: the beginning of its fingerprint].")
@as_json
def export(run: Path, relation: str, output: str, parameters: tuple[str, ...], table: str | None,
           run_id: str | None, as_json: bool) -> None:
    """Write a relation, a named query or a SELECT statement's answer where other tools read it.

    Files are replaced whole, and a DuckDB file's table as well. Tables of PostgreSQL and Delta Lake
    hold several runs side by side, told apart by run_id: exporting a run again replaces its rows.
    """
    from clsight.export import export as export_to

    exported = export_to(run, relation, output, pairs(parameters, "-p"), table, run_id)
    for line in (f"{exported.n_rows:,} rows in {exported.where}", *exported.notices):
        click.echo(printable(line), err=True)
    if as_json:
        say_json({"rows": exported.n_rows, "where": exported.where,
                  "notices": [*exported.notices]})


def _say_written(output: Path, as_json: bool) -> None:
    size = output.stat().st_size
    if as_json:
        say_json({"file": str(output), "bytes": size})
    click.echo(printable(f"{output}: {size / 1e6:.1f} MB"), err=True)
