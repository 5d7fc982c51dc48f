"""Where the time of a run goes: seconds by stage, and what the hardware can do."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

STAGES = {
    "documents": ("device", "read the dataset, find its words"),
    "load": ("reader", "open a model"),
    "tokenise": ("reader", "texts to pieces"),
    "calibrate": ("device", "try batches of several sizes"),
    "forward": ("device", "pieces through the layers and the head"),
    "rows": ("device", "[CLS] rows, beside fused attention"),
    "backward": ("device", "margin back to what scores need"),
    "wait": ("device", "idle: for pieces, or for results to be written"),
    "write": ("writer", "results to Parquet"),
    "score": ("scorer", "attention to words"),
    "statistics": ("device", "the test of every word, and the database"),
}
"""stage -> (thread, what it does). Threads run side by side; "device" is the main one."""

COMPUTING = ("calibrate", "forward", "rows", "backward")


@dataclass
class Clock:
    """Seconds by stage. Stages of one thread exclude each other, those of different ones overlap.

    A detailed clock waits for the device at every change of stage, which costs some speed on CUDA,
    and lets operations be counted.
    """

    detailed: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    operations: float = 0
    """Floating-point operations of matrix products in forward passes (detailed clocks)."""

    def __post_init__(self) -> None:
        """What threads need, and other processes do not get."""
        self._local, self._lock = threading.local(), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """As the counts alone."""
        return Clock, (self.detailed, self.seconds, self.operations)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's seconds as `name`, and not as the stage around it."""
        outer = getattr(self._local, "stage", None)
        self._change(name)
        try:
            yield
        finally:
            self._change(outer)

    def spent(self, stage: str, seconds: float) -> None:
        """Add seconds that were measured otherwise."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0) + seconds

    def add(self, other: "Clock", share: float) -> None:
        """Add a share of what another clock counted."""
        self.operations += share * other.operations
        for stage, took in other.seconds.items():
            self.spent(stage, share * took)

    def count(self, operations: float) -> None:
        """Add floating-point operations."""
        self.operations += operations

    def _change(self, name: str | None) -> None:
        if self.detailed:
            import torch  # which the statistics, with clocks of their own, can do without

            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        now, before = time.perf_counter(), getattr(self._local, "stage", None)
        if before is not None:
            self.spent(before, now - self._local.since)
        self._local.stage, self._local.since = name, now

    def table(self, wall: float) -> list[dict[str, Any]]:
        """Rows for the screen: stage, thread, what, seconds, share of the `wall` seconds."""
        seconds = {stage: self.seconds[stage] for stage in STAGES if stage in self.seconds}
        rows = [(stage, *STAGES[stage], took) for stage, took in seconds.items()]
        known = sum(took for _, thread, _, took in rows if thread == "device")
        rows.append(("other", "device", "checks, plan, progress", wall - known))
        names = ("stage", "thread", "what", "seconds")
        return [dict(zip(names, row, strict=True)) | {"share": f"{row[3] / wall:.0%}"}
                for row in rows]

    def achieved(self) -> float:
        """Operations per second while the device's thread computed (detailed clocks)."""
        return self.operations / sum(self.seconds.get(stage, 0) for stage in COMPUTING)


def matrix_peak(dtype: str, device: str, width: int = 1024, seconds: float = 0.5) -> float:
    """Operations per second of the fastest of some matrix products, as encoders have them.

    Args:
        dtype: precision, such as "bfloat16".
        device: where.
        width: of the encoder; products are [rows, width] x [width, 4 width], and back.
        seconds: how long to try.
    """
    import torch

    from clsight.prepacked import prepacked

    rows, precision = 4096 if device == "cpu" else 65536, getattr(torch, dtype)
    with torch.no_grad():
        wide = prepacked(torch.nn.Linear(width, 4 * width, device=device, dtype=precision))
        narrow = prepacked(torch.nn.Linear(4 * width, width, device=device, dtype=precision))
        x = torch.randn(rows, width, device=device, dtype=precision)
        fastest = _fastest(lambda: narrow(wide(x)), device, seconds)
    return 2 * 2 * rows * width * 4 * width / fastest


def _fastest(call: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the fastest call, after one that does not count."""
    import torch

    fastest, started = float("inf"), time.perf_counter()
    call()
    while time.perf_counter() - started < seconds or fastest == float("inf"):
        before = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - before)
    return fastest
