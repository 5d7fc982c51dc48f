"""Commands that make a run."""

import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from clsight.cli.options import (
    as_json,
    example,
    hint,
    kept_of,
    pairs,
    run_folder,
    say_json,
    where,
)
from clsight.parts import Part
from clsight.screen import log_on_stderr, progress_bar, show_profile, shown_on
from clsight.stopping import stoppable


def _number_or_auto(given: str) -> int | None:
    if given == "auto":
        return None
    if not given.isdecimal() or int(given) < 1:
        raise click.BadParameter(f"{given}: write auto, or a number of pieces from 1")
    return int(given)


@click.command(epilog=example(
    "clsight run reviews.parquet --text text --label label \\",
    "    --model bert=models/bert --model roberta=models/roberta -o run"))
@click.argument("data")
@click.option("--text", required=True, metavar="COLUMN", help="Column of the texts.")
@click.option("--text-pair", metavar="COLUMN",
              help="Column of the second texts, for classifiers of pairs.")
@click.option("--label", required=True, metavar="COLUMN", help="Column of the gold labels.")
@click.option("--id", "id_", metavar="COLUMN", help="Column of document ids [default: the row].")
@click.option("--split", help="Split of a Hugging Face dataset.")
@click.option("--streaming", is_flag=True,
              help="Read a Hugging Face dataset row by row, without storing it here.")
@click.option("--model", "models", multiple=True, required=True, metavar="NAME=PATH",
              help="A checkpoint folder or Hub name, and its name in the run; may be repeated.")
@click.option("-o", "--output", required=True, metavar="RUN", help="The run folder.")
@click.option("--layers", default="last", show_default=True, metavar="last|all|LIST",
              help="Layers whose attention rows are stored, such as -1,-2 or 0-5.")
@click.option("--scores", default="default", show_default=True, metavar="default|all|LIST",
              help="Word scores: uniform, classifier, projected, norm, contribution, rollout, "
                   "relevance, conservative, deeplift; uniform_N and contribution_N for layer N. "
                   "By default uniform, classifier, projected, contribution, which cost one pass; "
                   "the first and the last of these are always there. default,deeplift adds the "
                   "most faithful one, for the time of two to four more passes.")
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
@where
@click.option("--shards", "part", metavar="I/N",
              help="Only every N-th shard from the I-th on, up to its scores, for array jobs on a "
                   "folder that all see; then: clsight merge RUN.")
@click.option("--profile", is_flag=True,
              help="Show where the time went, and how near the hardware's limit.")
@as_json
def run(data: str, id_: str | None, models: tuple[str, ...], output: str, part: str | None,
        **options: Any) -> None:
    """Extract, score and test a dataset; run it again to resume."""
    from clsight.statistics import Options

    tested = ("min_documents", "min_mass_ratio", "bigrams", "groups", "max_t", "seed")
    test = Options(**{name: options.pop(name) for name in tested})
    _run_and_summarise(data, pairs(models, "--model"), output, id=id_, options=test,
                       part=None if part is None else Part.of(part), **options)


@click.command(epilog=example(
    "clsight run … -o run --shards 0/2    # on one machine",
    "clsight run … -o run --shards 1/2    # on another",
    "clsight merge run"))
@run_folder
@where
@as_json
def merge(run: Path, as_json: bool, **options: Any) -> None:
    """Make the tables of a run whose shards were made in parts (run --shards I/N)."""
    from clsight import pipeline

    with _finished(run, as_json), progress_bar() as bar, log_on_stderr():
        pipeline.merge(run, progress=shown_on(bar), **options)


@click.command(epilog=example("clsight demo", "clsight query clsight-demo findings"))
@click.option("-o", "--output", default="clsight-demo", show_default=True, metavar="RUN",
              help="The run folder.")
@click.option("--documents", type=click.IntRange(min=100), default=4000, show_default=True,
              help="How many reviews to write.")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the reviews.")
@as_json
def demo(output: str, documents: int, seed: int, as_json: bool) -> None:
    """The whole way on generated reviews and two small classifiers from the package."""
    from clsight import demo as demonstration
    from clsight import store

    folder = store.folder(output)
    data = demonstration.write_reviews(folder.with_name(f"{folder.name}-data"), documents, seed)
    _run_and_summarise(str(data), demonstration.models(), folder, as_json=as_json, text="text",
                       label="label")
    click.echo(demonstration.verdict(folder), err=as_json)


def _run_and_summarise(
    data: str, models: dict[str, str], output: str | Path, *, as_json: bool, profile: bool = False,
    part: Part | None = None, **options: Any,
) -> None:
    from clsight import store

    folder, started = store.folder(output), time.monotonic()
    with _finished(folder, as_json, part):
        import_engine()
        from clsight import pipeline
        from clsight.clock import Clock

        clock = Clock(detailed=profile)
        with progress_bar() as bar, log_on_stderr():
            run = pipeline.run(data, models=models, output=folder, progress=shown_on(bar),
                               clock=clock, part=part, **options)
        if profile:
            show_profile(clock, time.monotonic() - started, run, options.get("device", "auto"))


@contextmanager
def _finished(folder: Path, as_json: bool, part: Part | None = None) -> Iterator[None]:
    """A block that completes a run, or a part of it; what was found is shown behind it."""
    started = time.monotonic()
    with stoppable(lambda: kept_of(folder)):
        yield
    if part is None:
        _show_summary(folder, as_json)
    elif as_json:
        say_json({"run": f"{folder}", "part": str(part)})
    done = "complete" if part is None else f"part {part} is complete"
    click.echo(f"{folder}: {done}, {time.monotonic() - started:.1f} s", err=True)
    if part is None:
        hint(f"clsight query {folder}", "lists what can be asked",
             f"clsight report {folder} -o report.html", "the dashboard as a file",
             f"clsight serve {folder}", "the same with all documents")


def _show_summary(folder: Path, as_json: bool) -> None:
    from clsight import database
    from clsight.output import write

    with database.connect(folder) as connection:
        answers = {name: database.query(connection, name, {}).read_all()
                   for name in ("summary", "findings")}
    if as_json:
        say_json({"run": f"{folder}", **{name: answer.to_pylist()
                                         for name, answer in answers.items()}})
    else:
        for answer in answers.values():
            write(answer.to_reader(), "table", sys.stdout.buffer)


def import_engine() -> None:
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
