"""Shards through their models: tokenise | forward | write | score, overlapped.

Imports torch, transformers, pyarrow and numpy alone until something is scored, so that extraction
runs on a bare GPU machine.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch

from clsight import kernels, memory, shards, store
from clsight.clock import Clock
from clsight.errors import ClsightError, Stopped
from clsight.events import event
from clsight.executors.jobs import Job, Place, Report
from clsight.executors.local import begin_child, threads
from clsight.extractor import Documents, Extractor, open_extractor
from clsight.plan import Plan
from clsight.results import Result


class Worker:
    """A device that takes the shards of a run; a context manager.

    Each stage has a thread of its own, so that while one shard is in the model, the next are
    tokenised (their model opened first, where it is another) and the last is written and scored.
    Call `take` from `in_flight` threads.
    """

    def __init__(
        self, run: str, plan: Plan, n_jobs: Mapping[str, int], tokens_per_batch: int | None,
        place: Place, report: Report, clock: Clock,
    ) -> None:
        """A device with no model yet.

        Args:
            run: the run folder, or its URL.
            plan: its plan.
            n_jobs: model -> shards that lie ahead of this worker.
            tokens_per_batch: pieces per batch; None for what suits the device.
            place: the device, and on how many cores.
            report: called with the model and the number of documents of each batch done.
            clock: counts where time goes.
        """
        self._tokenisers = _tokenisers(place)
        self.in_flight = max(1, self._tokenisers) + 2
        self._run, self._plan, self._n_jobs = store.folder(run), plan, n_jobs
        self._tokens_per_batch, self._device = tokens_per_batch, place.device
        self._report, self._clock = report, clock
        self._opening: dict[str, Future[Extractor]] = {}
        self._calibrated: dict[str, Extractor] = {}
        self._locking, self._ending, self._idle_since = threading.Lock(), False, 0.0
        self._cores, self._stack = place.cores, ExitStack()

    def __enter__(self) -> Self:
        """Start the threads."""
        memory.bound()
        if self._cores is not None:
            # To set a number that holds already made minilm slower: 5.98 s, not 5.47 (2 threads).
            if torch.get_num_threads() != self._cores:
                torch.set_num_threads(self._cores)
            kernels.limit(self._cores)

        def card() -> None:
            if self._device != "cpu":
                torch.cuda.set_device(self._device)

        self._opener, self._computer, self._writer, self._scorer, self._reader = (
            self._stack.enter_context(threads(n, card))
            for n in (1, 1, 1, 1, max(1, self._tokenisers)))
        self._workers = (self._stack.enter_context(_processes(self._tokenisers))
                         if self._tokenisers else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads; where the block failed, after the batch that is in the model."""
        self._ending = kind is not None
        self._stack.__exit__(kind, error, trace)

    def take(self, job: Job) -> None:
        """Extract and score a shard; returns once all that is made of it is committed.

        Raises:
            ClsightError: the model or the shard cannot be read, or a process ended.
        """
        if not store.exists(self._run / job.model / "attention" / job.shard):
            self.extract(job)
        self._scorer.submit(self._score, job).result()

    def extract(self, job: Job) -> None:
        """Commit `MODEL/attention` of a shard; raises as `take` does."""
        try:
            opened = self._opened(job.model)
            extractor, documents = self._reader.submit(self._read, opened, job.shard).result()
            results = self._computer.submit(self._attend, extractor, documents).result()
            self._writer.submit(self._commit, extractor, documents, results, job.shard).result()
        except BrokenProcessPool as error:
            raise ClsightError("a process that tokenises was ended from outside, most likely for "
                               "want of memory; the same command resumes") from error

    def _opened(self, model: str) -> Future[Extractor]:
        """A model, opened beside what is computed; those before it are let go."""
        with self._locking:
            if model not in self._opening:
                self._opening.clear()
                self._opening[model] = self._opener.submit(
                    open_extractor, model, self._plan, self._run, self._device,
                    self._tokens_per_batch, self._clock)
            return self._opening[model]

    def _read(self, opened: Future[Extractor], shard: str) -> tuple[Extractor, Documents]:
        extractor = opened.result()
        with self._clock.stage("tokenise"):
            return extractor, extractor.read(self._run / "documents" / shard, self._workers)

    def _attend(self, extractor: Extractor, documents: Documents) -> list[Result]:
        if self._idle_since:
            self._clock.spent("wait", time.perf_counter() - self._idle_since)
        model = extractor.name
        if model not in self._calibrated:
            n_shards = self._n_jobs.get(model, 1)
            self._calibrated = {model: extractor.calibrated(documents, n_shards)}
        results = self._calibrated[model].attend(documents, lambda n: self._batch_done(model, n))
        self._idle_since = time.perf_counter()
        return results

    def _batch_done(self, model: str, n: int) -> None:
        if self._ending:
            raise Stopped("another failed")
        self._report(model, n)

    def _commit(
        self, extractor: Extractor, documents: Documents, results: list[Result], shard: str
    ) -> None:
        with self._clock.stage("write"):
            table = extractor.table(documents, results)
            shards.write(table, self._run / extractor.name / "attention" / shard)
        event("extracted", f"{extractor.name}: {shard} is extracted", logging.DEBUG,
              model=extractor.name, shard=shard, n_documents=table.num_rows)

    def _score(self, job: Job) -> None:
        from clsight.scores import score_shard

        with self._clock.stage("score"):
            score_shard(self._run, self._plan, job.model, job.shard)
        event("scored", f"{job.model}: {job.shard} is scored", logging.DEBUG, model=job.model,
              shard=job.shard)


def _processes(n: int) -> ProcessPoolExecutor:
    """Processes started afresh: a fork would share the state of CUDA and of running threads."""
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), begin_child)


def _tokenisers(place: Place) -> int:
    """Processes that tokenise, a shard each, for a card; on the CPU a thread does it in passing."""
    cores = place.cores or os.cpu_count() or 1
    return 0 if place.device == "cpu" else max(1, min(8, cores // 2))
