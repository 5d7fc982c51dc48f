"""The command that holds scores against what models do."""

import sys
from pathlib import Path
from typing import Any

import click

from clsight.cli.options import (
    as_json,
    example,
    hint,
    kept_of,
    names_of_models,
    run_folder,
    say_json,
)
from clsight.cli.running import import_engine
from clsight.errors import printable
from clsight.screen import log_on_stderr, progress_bar, shown_on
from clsight.stopping import stoppable

SHOWN = """
SELECT model, perturbation, score, comprehensiveness, comprehensiveness_low AS low,
    comprehensiveness_high AS high, level_with_best, sufficiency, aopc, flips, reconstruction,
    passes
FROM faithfulness
"""


@click.command(epilog=example("clsight validate run", "clsight validate run --sample 100",
                              "clsight query run faithfulness"))
@run_folder
@click.option("--sample", type=click.IntRange(min=1), default=500, show_default=True, metavar="N",
              help="Documents to measure on.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S",
              help="Seed of the sample, of random scores and of intervals.")
@click.option("--model", "models", multiple=True, shell_complete=names_of_models,
              help="A model of the run [default: all]; may be repeated.")
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True, metavar="N",
              help="Steps of integrated gradients.")
@click.option("--device", default="auto", show_default=True,
              type=click.Choice(["auto", "cpu", "cuda"]))
@as_json
def validate(run: Path, as_json: bool, **options: Any) -> None:
    """Which score to trust here: mask the words that each names, and see what the model says.

    Every score that a model can have is measured beside random words, leave-one-out, gradient x
    input and integrated gradients, whichever scores the run has.
    """
    with stoppable(lambda: kept_of(run)):
        import_engine()
        from clsight.validate import validate as measure

        with progress_bar() as bar, log_on_stderr():
            measure(run, progress=shown_on(bar), **options)
    _answer(run, as_json)
    hint(f"clsight query {run} faithfulness", "all measures with their intervals")


def _answer(run: Path, as_json: bool) -> None:
    from clsight import database, output
    from clsight import plan as plans
    from clsight.faithfulness import best_scores, verdict

    with database.connect(run) as connection:
        rows = database.query(connection, "faithfulness", {}).read_all().to_pylist()
        if as_json:
            say_json({"run": f"{run}", "faithfulness": rows, "verdict": verdict(rows)})
            return
        output.write(database.query(connection, SHOWN, {}), "table", sys.stdout.buffer)
    for sentence in verdict(rows):
        click.echo(printable(sentence))
    for score in best_scores(rows):
        if score not in plans.load(run).scores:
            click.echo(f"this run has no {score}: one that has it is made with --scores "
                       f"default,{score}")
