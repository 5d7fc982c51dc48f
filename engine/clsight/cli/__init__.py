"""The command line: parse, call, print. stdout is data, stderr is progress.

    options      what commands share
    running      run, merge, demo
    asking       query, status, verify
    showing      heatmap, report, serve, export
    validating   validate
    completion   completion
"""

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import click

import clsight
from clsight.cli.asking import query, status, verify
from clsight.cli.completion import completion
from clsight.cli.options import DONE, FAILED, USAGE, example
from clsight.cli.running import demo, merge, run
from clsight.cli.showing import export, heatmap, report, serve
from clsight.cli.validating import validate
from clsight.errors import ClsightError, UsageError, printable

COMMANDS = (run, merge, demo, query, status, verify, heatmap, report, serve, export, validate,
            completion)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
             epilog=example("clsight demo", "clsight query clsight-demo over_attended"))
@click.version_option(clsight.__version__)
def cli() -> None:
    """Which words did each classifier look at too much when it was wrong?"""


for command in COMMANDS:
    cli.add_command(command)


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
