"""What a person sees of a run while it works: bars, log and profile, on stderr."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clsight.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from clsight.clock import Clock
    from clsight.run_folder import Run


def progress_bar() -> "Progress":
    """A bar for each stage, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.completed:>9,.0f} {task.fields[unit]} {task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )


def shown_on(bar: "Progress", unit: str = "documents") -> Callable[[str, int, int], None]:
    """A `pipeline.Progress` that a bar shows."""
    tasks: dict[str, Any] = {}

    def progress(stage: str, documents: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total or None, unit=unit, rate="")
        bar.advance(tasks[stage], documents)
        task = bar.tasks[tasks[stage]]
        if speed := task.finished_speed or task.speed:
            bar.update(tasks[stage], rate=f"{speed:,.0f}/s")

    return progress


@contextmanager
def log_on_stderr() -> Iterator[None]:
    """Show the package's log; opened within the progress bar, which then keeps lines apart."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    # What ends a run is said as the last word, by `_say`.
    handler.addFilter(lambda record: getattr(record, "event", "") != "stopped")
    handler.setFormatter(_Printable())
    log = logging.getLogger("clsight")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The message; see `printable`."""
        return printable(record.getMessage())


def show_profile(clock: "Clock", wall: float, run: "Run", device: str) -> None:
    """Where the time of a run went, and how near it came to the hardware's limit."""
    import pyarrow as pa
    from rich.console import Console

    from clsight import output
    from clsight.clock import matrix_peak
    from clsight.extractor import devices

    rows = clock.table(wall)
    console = Console(stderr=True)
    console.print(output.table(pa.Table.from_pylist(rows).schema, rows))
    if clock.operations:
        achieved, peak = clock.achieved(), matrix_peak(run.plan.dtype, devices(device)[0])
        console.print(f"useful arithmetic: {achieved / 1e9:,.0f} GFLOP/s, {achieved / peak:.0%} of "
                      f"the {peak / 1e9:,.0f} that matrix products reach here in "
                      f"{run.plan.dtype}", highlight=False)
