"""The command line: parse, call, print. stdout is data, stderr is progress."""

import gc
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import clsight
from clsight.errors import ClsightError, UsageError, printable
from clsight.screen import log_on_stderr, progress_bar, show_profile, shown_on
from clsight.stopping import stoppable

DONE, FAILED, USAGE = 0, 1, 2
FORMATS = ("table", "json", "csv", "parquet", "arrow")

run_folder = click.argument("run", type=click.Path(path_type=Path))


def example(*lines: str) -> str:
    """The closing part of a command's help; click keeps its lines as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
             epilog=example("clsight demo", "clsight query clsight-demo over_attended"))
@click.version_option(clsight.__version__)
def cli() -> None:
    """Which words did each classifier look at too much when it was wrong?"""


@cli.command(epilog=example(
    "clsight run reviews.parquet --text text --label label \\",
    "    --model bert=models/bert --model roberta=models/roberta -o run"))
@click.argument("data")
@click.option("--text", required=True, metavar="COLUMN", help="Column of the texts.")
@click.option("--text-pair", metavar="COLUMN",
              help="Column of the second texts, for classifiers of pairs.")
@click.option("--label", required=True, metavar="COLUMN", help="Column of the gold labels.")
@click.option("--id", "id_", metavar="COLUMN", help="Column of document ids [default: the row].")
@click.option("--split", help="Split of a Hugging Face dataset.")
@click.option("--model", "models", multiple=True, required=True, metavar="NAME=PATH",
              help="A checkpoint folder or Hub name, and its name in the run; may be repeated.")
@click.option("-o", "--output", required=True, metavar="RUN", help="The run folder.")
@click.option("--layers", default="last", show_default=True, metavar="last|all|LIST",
              help="Layers whose attention rows are stored, such as -1,-2 or 0-5.")
@click.option("--scores", default="default", show_default=True, metavar="default|all|LIST",
              help="Word scores: uniform, classifier, projected, norm, contribution, rollout, "
                   "relevance, conservative; uniform_N and contribution_N for layer N. By default "
                   "uniform, classifier, projected, contribution; the first and the last of these "
                   "are always there.")
@click.option("--target", default="predicted", show_default=True, metavar="predicted|gold|LABEL",
              help="The class whose margin scores explain.")
@click.option("--dtype", default="auto", show_default=True,
              type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              help="Precision; auto is bfloat16 where the hardware multiplies it.")
@click.option("--device", default="auto", show_default=True,
              type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--tokens-per-batch", default="auto", show_default=True, metavar="auto|N",
              callback=lambda *given: _number_or_auto(given[-1]),
              help="Pieces per batch; auto measures what suits the device, where that pays.")
@click.option("--shard-size", type=click.IntRange(min=1), default=4096, show_default=True,
              metavar="N", help="Documents per shard.")
@click.option("--on-bad-row", type=click.Choice(["error", "skip"]), default="error",
              show_default=True, help="What to do with empty texts and unknown labels.")
@click.option("--min-documents", type=click.IntRange(min=2), default=40, show_default=True,
              metavar="N", help="Test words that are in at least so many documents.")
@click.option("--min-mass-ratio", type=click.FloatRange(min=0), default=1.2, show_default=True,
              help="Least mass ratio of an over-attended word.")
@click.option("--bigrams", is_flag=True, help="Test pairs of neighbouring words as well.")
@click.option("--groups", type=click.Path(dir_okay=False), metavar="FILE",
              help="Test groups of words as well: a table with the columns form and group.")
@click.option("--group-by", metavar="COLUMN",
              help="Test words within each value of a column as well (source, language), and "
                   "compare documents within them alone.")
@click.option("--max-t", is_flag=True,
              help="Also p values that hold for all words together (Westfall-Young).")
@click.option("--seed", type=int, default=0, show_default=True,
              help="Seed of permutations and bootstrap.")
@click.option("--profile", is_flag=True,
              help="Show where the time went, and how near the hardware's limit.")
def run(data: str, id_: str | None, models: tuple[str, ...], output: str, **options: Any) -> None:
    """Extract, score and test a dataset; run it again to resume."""
    from clsight.statistics import Options

    tested = ("min_documents", "min_mass_ratio", "bigrams", "groups", "max_t", "seed")
    test = Options(**{name: options.pop(name) for name in tested})
    _run_and_summarise(data, _pairs(models, "--model"), output, id=id_, options=test, **options)


@cli.command(epilog=example(
    "clsight query run", "clsight query run over_attended",
    "clsight query run examples -p form=yet --format json",
    'clsight query run "SELECT model, avg(margin) FROM predictions GROUP BY model"'))
@run_folder
@click.argument("name_or_sql", required=False)
@click.option("-p", "--parameter", "parameters", multiple=True, metavar="KEY=VALUE",
              help="A parameter of the query; may be repeated.")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="table",
              show_default=True, help="How the answer is written to stdout.")
def query(run: Path, name_or_sql: str | None, parameters: tuple[str, ...], format_: str) -> None:
    """Ask a run: a named query, a relation, or one SELECT statement; alone, list what there is."""
    from clsight import database, output

    with database.connect(run) as connection:
        if name_or_sql is None:
            answer = database.catalogue()
        else:
            answer = database.query(connection, name_or_sql, _pairs(parameters, "-p"))
        output.write(answer, format_, sys.stdout.buffer)


@cli.command(epilog=example("clsight status run", "clsight status run --json"))
@run_folder
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def status(run: Path, as_json: bool) -> int:
    """How far a run is: progress, rate, time left, retries, bad documents.

    Exits with 0 where it is complete, 3 where a process is at work, and 1 where it was stopped
    before its end, so that the same `clsight run` is needed once more.
    """
    import json

    from clsight import status as states

    found = states.status(run)
    if as_json:
        click.echo(json.dumps(states.as_dict(found), indent=2))
    else:
        click.echo("\n".join(printable(line) for line in states.lines(found)))
    return found.exit_code


@cli.command(epilog=example("clsight verify run", "clsight verify run --repair"))
@run_folder
@click.option("--repair", is_flag=True, help="Make again what is wrong, and only that.")
def verify(run: Path, repair: bool) -> int:
    """Is everything there, byte for byte as it was written, and as planned?

    Reads every shard and asks every check; names what is wrong, a line each. Exits with 0 where
    nothing is, else with 1.
    """
    from clsight import verify as verification

    with progress_bar() as bar, log_on_stderr():
        if repair:
            with stoppable(lambda: _kept(run)):
                found = verification.repair(run, shown_on(bar))
        else:
            shown = shown_on(bar, "files")
            found = verification.verify(run, lambda n, total: shown("verify", n, total))
    for problem in found:
        click.echo(printable(str(problem)))
    click.echo(f"{run}: {len(found) or 'no'} problem{'s'[: len(found) != 1]}", err=True)
    return FAILED if found else DONE


@cli.command(epilog=example("clsight heatmap run --model bert --document 17 -o bert-17.png"))
@run_folder
@click.option("--model", required=True, help="A model of the run.")
@click.option("--document", required=True, metavar="ID", help="A document's id.")
@click.option("--weights", type=click.Choice(["uniform", "classifier", "projected"]),
              default="uniform", show_default=True, help="How the heads are averaged.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Picture to write: .png, .svg or .pdf.")
def heatmap(run: Path, model: str, document: str, weights: str, output: Path) -> None:
    """Draw the last layer's attention of one document, piece by piece."""
    from clsight.heatmap import draw
    from clsight.pipeline import open_run

    draw(open_run(run), model, document, weights, output)


@cli.command(epilog=example("clsight demo", "clsight query clsight-demo findings"))
@click.option("-o", "--output", default="clsight-demo", show_default=True, metavar="RUN",
              help="The run folder.")
@click.option("--documents", type=click.IntRange(min=100), default=4000, show_default=True,
              help="How many reviews to write.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the reviews.")
def demo(output: str, documents: int, seed: int) -> None:
    """The whole way on generated reviews and two small classifiers from the package."""
    from clsight import demo as demonstration

    folder = Path(output)
    data = demonstration.write_reviews(folder.with_name(f"{folder.name}-data"), documents, seed)
    _run_and_summarise(str(data), demonstration.models(), output, text="text", label="label")
    click.echo(demonstration.verdict(folder))


def main() -> None:
    """Run the command line; a known failure is one sentence on stderr and exit code 1 or 2."""
    code = _exit_code()
    # Everything is on disk by now; taking the interpreter down module by module would cost a
    # second more (of 12 for 4,262 documents and three models).
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code() -> int:
    try:
        returned = cli.main(standalone_mode=False)
        return returned if isinstance(returned, int) else DONE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("stopped")
    except UsageError as error:
        _say(str(error))
        return USAGE
    except BrokenPipeError:
        pass
    except (ClsightError, OSError) as error:
        _say(str(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _say(f"unexpected {type(error).__name__}: {error} ({Path(where.filename).name}, line "
             f"{where.lineno}); a fault of clsight, please report it; log/events.jsonl of a run "
             "has all of it")
    return FAILED


def _say(what: str) -> None:
    """One sentence on stderr, whatever the names and texts in it are made of."""
    with suppress(OSError):  # a terminal that is gone
        click.echo(f"clsight: {printable(what)}", err=True)


def _kept(run: Path) -> str:
    from clsight.status import kept

    try:
        return kept(run)
    except (ClsightError, OSError):
        return "what is complete is kept"


def _run_and_summarise(
    data: str, models: dict[str, str], output: str, profile: bool = False, **options: Any
) -> None:
    with stoppable(lambda: _kept(Path(output))):
        _import_engine()
        from clsight import database, pipeline
        from clsight.clock import Clock
        from clsight.output import write

        started, clock = time.monotonic(), Clock(detailed=profile)
        with progress_bar() as bar, log_on_stderr():
            run = pipeline.run(data, models=models, output=output, progress=shown_on(bar),
                               clock=clock, **options)
    if profile:
        show_profile(clock, time.monotonic() - started, run, options.get("device", "auto"))
    with database.connect(run.folder) as connection:
        for query in ("summary", "findings"):
            answer = database.query(connection, query, {})
            write(answer, "table", sys.stdout.buffer)
    click.echo(f"{run.folder}: complete, {time.monotonic() - started:.1f} s; "
               f"clsight query {run.folder} lists what can be asked", err=True)


def _import_engine() -> None:
    """Import all that a run needs: torch and transformers beside the rest, no garbage collection.

    Modules live as long as the process, so looking for garbage among them is half a second lost;
    loading libraries side by side saves as much again.
    """
    from clsight import memory

    gc.disable()
    memory.bound()
    with ThreadPoolExecutor(1) as beside:
        imported = beside.submit(import_module, "clsight.extract")
        for module in ("words", "scores", "database"):
            import_module(f"clsight.{module}")
        imported.result()
    gc.freeze()
    gc.enable()


def _number_or_auto(given: str) -> int | None:
    if given == "auto":
        return None
    if not given.isdecimal() or int(given) < 1:
        raise click.BadParameter(f"{given}: write auto, or a number of pieces from 1")
    return int(given)


def _pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    pairs = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key or key in pairs:
            raise UsageError(f"{option} {item}: write NAME=VALUE, each name once")
        pairs[key] = value
    return pairs


if __name__ == "__main__":
    main()
