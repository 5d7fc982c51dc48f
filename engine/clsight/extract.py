"""Shards through their models: tokenise | forward | write, overlapped.

Imports torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU machine.
"""

import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from clsight import shards
from clsight.clock import Clock
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
            stack.enter_context(ThreadPoolExecutor(threads)) for threads in (1, ahead, 1)
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


def _processes(n: int) -> ProcessPoolExecutor:
    """Processes started afresh: a fork would share the state of CUDA and of running threads."""
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))
