"""Shards through their models: tokenise | forward | write, overlapped.

Imports torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU machine.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clsight import events, memory, shards
from clsight.clock import Clock
from clsight.errors import ClsightError
from clsight.events import event
from clsight.extractor import Documents, Extractor, open_extractor
from clsight.plan import Plan
from clsight.results import Result


def extract(
    run: Path, plan: Plan, jobs: list[tuple[str, str]], device: str,
    tokens_per_batch: int | None, progress: Callable[[str, int], None], clock: Clock | None = None,
    tokenisers: int = 0,
) -> Iterator[tuple[str, str]]:
    """Extract shards into `MODEL/attention`; yields each job once it is committed.

    While one shard is in the model, the next are tokenised (their model opened first, where it is
    another) and the last is written; an error in either is raised here.

    Args:
        run: the run folder.
        plan: its plan.
        jobs: (model, name of a document shard), those of one model side by side.
        device: "cpu", "cuda" or "cuda:1".
        tokens_per_batch: pieces per batch; None for what suits the device.
        progress: called with the model and the number of documents of each batch done.
        clock: counts where time goes.
        tokenisers: processes that tokenise, a shard each; 0 for a thread of this one.
    """
    clock, ahead = clock or Clock(), max(1, tokenisers)
    shards_of = Counter(model for model, _ in jobs)
    extractors: dict[str, Extractor] = {}
    with ExitStack() as stack:
        opener, reader, writer = (
            stack.enter_context(threads(n)) for n in (1, ahead, 1)
        )
        workers = stack.enter_context(_processes(tokenisers)) if tokenisers else None
        opening: dict[str, Future[Extractor]] = {}

        def read(opened: Future[Extractor], name: str) -> tuple[Extractor, Documents]:
            extractor = opened.result()
            with clock.stage("tokenise"):
                return extractor, extractor.read(run / "documents" / name, workers)

        def begin(model: str, name: str) -> Future[tuple[Extractor, Documents]]:
            if model not in opening:
                opening.clear()
                opening[model] = opener.submit(
                    open_extractor, model, plan, run, device, tokens_per_batch, clock
                )
            return reader.submit(read, opening[model], name)

        def commit(
            extractor: Extractor, documents: Documents, results: list[Result], name: str
        ) -> tuple[str, str]:
            with clock.stage("write"):
                table = extractor.table(documents, results)
                shards.write(table, run / extractor.name / "attention" / name)
            event("extracted", f"{extractor.name}: {name} is extracted", logging.DEBUG,
                  model=extractor.name, shard=name, n_documents=table.num_rows)
            return extractor.name, name

        begun = deque(begin(*job) for job in jobs[:ahead])
        written: list[Future[tuple[str, str]]] = []
        for i, (model, name) in enumerate(jobs):
            with clock.stage("wait"):
                extractor, documents = begun.popleft().result()
            if model not in extractors:
                extractors = {model: extractor.calibrated(documents, shards_of[model])}
            begun.extend(begin(*job) for job in jobs[i + ahead : i + ahead + 1])
            results = extractors[model].attend(documents, partial(progress, model))
            with clock.stage("wait"):
                committed = [future.result() for future in written]
            yield from committed
            written = [writer.submit(commit, extractor, documents, results, name)]
        yield from (future.result() for future in written)


@contextmanager
def threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end what they are at; what waits behind it is dropped if the block fails."""
    pool = ThreadPoolExecutor(n)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _processes(n: int, queue: Any = None) -> ProcessPoolExecutor:
    """Processes started afresh: a fork would share the state of CUDA and of running threads."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(n, context, _begin_child, (queue,))


_parent: Any = None
"""Queue to the parent, in processes of `extract_on`."""


def _begin_child(queue: Any) -> None:
    """Live as long as the parent and no longer, also where it is killed and can say nothing.

    Ctrl-C reaches all processes of a terminal, and is the parent's to answer.
    """
    global _parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _parent = queue
    if queue is not None:
        events.to_parent(queue)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def extract_on(
    devices: list[str], run: Path, plan: Plan, jobs: list[tuple[str, str]],
    tokens_per_batch: int | None, progress: Callable[[str, int], None], clock: Clock,
) -> Iterator[tuple[str, str]]:
    """`extract` on several devices, one process each; every n-th job goes to the same.

    Where one fails, the others still commit their shards before its error is raised here.

    Args:
        devices: such as "cuda:0" and "cuda:1".
        run: the run folder.
        plan: its plan.
        jobs: as for `extract`.
        tokens_per_batch: as for `extract`.
        progress: as for `extract`.
        clock: gets the mean over devices.
    """
    try:
        if len(devices) == 1:
            yield from extract(run, plan, jobs, devices[0], tokens_per_batch, progress, clock,
                               tokenisers_for(devices[0], 1))
        else:
            yield from _side_by_side(devices, run, plan, jobs, tokens_per_batch, progress, clock)
    except BrokenProcessPool as error:
        raise ClsightError("a process was ended from outside, most likely for want of memory; the "
                           "same command resumes") from error


def _side_by_side(
    devices: list[str], run: Path, plan: Plan, jobs: list[tuple[str, str]],
    tokens_per_batch: int | None, progress: Callable[[str, int], None], clock: Clock,
) -> Iterator[tuple[str, str]]:
    """`extract` in a process per device, whose messages come in the order in which they are sent.

    A simple queue writes before it returns: when a process has ended, all it said has been said.
    """
    n, queue = len(devices), multiprocessing.get_context("spawn").SimpleQueue()
    with _processes(n, queue) as pool:
        parts = [pool.submit(_extract_part, run, plan, jobs[i::n], device, tokens_per_batch,
                             clock.detailed, n)
                 for i, device in enumerate(devices)]
        for part in parts:
            part.add_done_callback(lambda _: queue.put(None))
        ended = 0
        try:
            while ended < n:
                match queue.get():
                    case None:
                        ended += 1
                    case logging.LogRecord() as record:
                        events.log.handle(record)
                    case model, int(done):
                        progress(model, done)
                    case job:
                        yield job
        finally:
            while ended < n:  # a full queue that nobody reads would hold the processes up
                ended += queue.get() is None
        for part in parts:
            clock.add(part.result(), 1 / n)


def tokenisers_for(device: str, n_devices: int) -> int:
    """Processes that tokenise for a device; on the CPU a thread does it in passing."""
    cores = os.cpu_count() or 1
    return 0 if device == "cpu" else max(1, min(8, cores // (2 * n_devices)))


def _extract_part(
    run: Path, plan: Plan, jobs: list[tuple[str, str]], device: str,
    tokens_per_batch: int | None, detailed: bool, n_devices: int,
) -> Clock:
    """The jobs of one device; what happens goes to the parent as it happens."""
    memory.bound()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // n_devices))
    if device != "cpu":
        torch.cuda.set_device(device)
    clock = Clock(detailed)
    for job in extract(run, plan, jobs, device, tokens_per_batch,
                       lambda model, done: _parent.put((model, done)), clock,
                       tokenisers_for(device, n_devices)):
        _parent.put(job)
    return clock
