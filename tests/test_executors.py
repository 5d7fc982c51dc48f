"""Wherever shards are worked on: the same tables; nothing is lost where workers or drivers die."""

import os
import random
import shutil
import signal
import sys
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from clsight import blocks, build, shards
from clsight.block_tests import BlockTests
from clsight.clock import Clock
from clsight.errors import ClsightError, UsageError
from clsight.executors import dispatch, jobs, local, opened
from clsight.executors.dispatch import Died, Done, Ready
from clsight.executors.jobs import Job
from clsight.extract import Worker
from clsight.statistics import Options
from test_pipeline import contents, run

SIZE = 50
"""Documents a shard: twelve shards of the reviews."""


class Mortal(Worker):
    """A worker that is killed while it has shards, as often as there are `lives` to take."""

    def __init__(self, *given, lives, only=None):
        super().__init__(*given)
        self.lives, self.only = lives, only

    def take(self, job):
        if job.shard == self.only or (self.only is None and random.random() < 0.5):
            for life in self.lives.iterdir():
                life.unlink(missing_ok=True)
                os.kill(os.getpid(), signal.SIGKILL)
        super().take(job)


class Failing(Worker):
    def take(self, job):
        if job.shard == "00003.parquet":
            raise ClsightError("shard 3 is not to be had")
        super().take(job)


@pytest.fixture(scope="module")
def cluster():
    """Three nodes, of a core each; the first has the driver and no worker."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Its nodes know the package, and not the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(params=["local", "ray"])
def executor(request):
    """A function (workers) -> an open executor."""
    address = request.getfixturevalue("cluster").address if request.param == "ray" else None
    return partial(opened, request.param, "cpu", ray_address=address)


@pytest.fixture(scope="module")
def reference(reviews, tmp_path_factory):
    """The run of one process, on as many cores as each of several workers has."""
    import torch

    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(reviews, tmp_path_factory.mktemp("reference") / "run", shard_size=SIZE,
                   layers="last")
    finally:
        torch.set_num_threads(cores)


@pytest.fixture
def bare(reference, tmp_path):
    """A run folder with documents and nothing else, and all its jobs."""
    (tmp_path / "documents").symlink_to(reference.folder / "documents")
    return tmp_path, [Job(model, name) for model in reference.plan.models
                      for name in reference.plan.shard_names()]


def same_tables(reference, folder):
    """Every shard is there, once, and holds what the reference's holds, row for row."""
    for model in reference.plan.models:
        for made in shards.MADE:
            assert shards.done(folder / model / made) == {*reference.plan.shard_names()}
            for name in reference.plan.shard_names():
                one, other = (pq.read_table(at / model / made / name)
                              for at in (reference.folder, folder))
                assert one.schema == other.schema
                for column in one.column_names:
                    same(one[column].combine_chunks(), other[column].combine_chunks())
    assert not list(folder.glob(f"*/*/{shards.PARTIAL}*"))


def same(one, other):
    """Equal; floats but for the order of sums, which follows the number of threads."""
    while pa.types.is_list(one.type):
        assert one.offsets.equals(other.offsets)
        one, other = one.values, other.values
    if pa.types.is_floating(one.type):
        assert one.is_null().equals(other.is_null())
        np.testing.assert_allclose(pc.fill_null(one, 0), pc.fill_null(other, 0), rtol=1e-4,
                                   atol=1e-5)
    else:
        assert one.equals(other)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_makes_the_same_shards(executor, reference, bare, workers):
    folder, todo = bare
    make, done = partial(Worker, folder, reference.plan, {}, None), []
    if executor.args[0] == "ray":
        if workers != 2:
            pytest.skip("benchmarks/executors.py has these numbers of actors")
        workers = None  # there is room for two: as many are started
    with executor(workers) as where:
        committed = list(where.run(make, todo, lambda model, n: done.append((model, n)), Clock()))
    assert sorted(committed) == sorted(todo)
    same_tables(reference, folder)
    for model in reference.plan.models:
        assert sum(n for name, n in done if name == model) == reference.plan.n_rows


def test_workers_that_are_killed_lose_and_double_nothing(
    executor, reference, bare, tmp_path, monkeypatch
):
    """Twice; `benchmarks/executors.py` kills twenty."""
    monkeypatch.setattr(dispatch, "MOST_DEATHS", 20)
    folder, todo = bare
    (lives := tmp_path / "lives").mkdir()
    for life in range(2):
        (lives / str(life)).touch()
    with executor(2) as where:
        make = partial(Mortal, folder, reference.plan, {}, None, lives=lives)
        committed = list(where.run(make, todo, lambda *_: None, Clock()))
    assert not list(lives.iterdir())
    assert sorted(committed) == sorted(todo)
    shards.sweep(folder)
    same_tables(reference, folder)


@pytest.mark.parametrize("executor", ["local"], indirect=True)
def test_a_shard_that_kills_its_workers_is_named_and_all_others_are_done(
    executor, reference, bare, tmp_path, monkeypatch
):
    monkeypatch.setattr(dispatch, "MOST_DEATHS", 1)
    folder, todo = bare
    (lives := tmp_path / "lives").mkdir()
    for life in range(100):
        (lives / str(life)).touch()
    make = partial(Mortal, folder, reference.plan, {}, None, lives=lives, only="00003.parquet")
    with executor(2) as where, pytest.raises(ClsightError, match=r"2 workers ended at bert 00003"):
        list(where.run(make, todo[:12], lambda *_: None, Clock()))


@pytest.mark.parametrize("executor", ["local"], indirect=True)
def test_an_error_is_raised_once_what_is_at_work_is_done(executor, reference, bare):
    folder, todo = bare
    make, committed = partial(Failing, folder, reference.plan, {}, None), []
    with executor(2) as where, pytest.raises(ClsightError, match="shard 3 is not to be had"):
        committed += where.run(make, todo[:5], lambda *_: None, Clock())
    for name in ("00000.parquet", "00001.parquet", "00002.parquet"):
        assert name in shards.done(folder / "bert" / "scores")


class MortalTests(BlockTests):
    """The first to test a block is killed; in its place comes another."""

    def take(self, job):
        try:
            (self.run / "died").touch(exist_ok=False)
        except FileExistsError:
            super().take(job)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


TESTED = ("tested_words", "model_pairs", "model_heterogeneity", "tested_slices",
          "slice_heterogeneity", "word_sums")


def test_any_workers_make_the_same_statistics(executor, reviews, tmp_path, monkeypatch):
    """Sums of shards and tests of blocks, made by two workers, one of which is killed."""
    monkeypatch.setattr(blocks, "PAIRS_PER_BLOCK", 500)
    table = pl.read_parquet(reviews).with_columns(
        source=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("one")).otherwise(
            pl.lit("other")))
    table.write_parquet(tmp_path / "reviews.parquet")
    options = Options(min_documents=20, bigrams=True, max_t=True, bootstrap=100)
    one = run(tmp_path / "reviews.parquet", tmp_path / "one", shard_size=SIZE, layers="last",
              group_by="source", options=options)
    other = shutil.copytree(one.folder, tmp_path / "other")
    shutil.rmtree(other / "bert" / "sums")
    monkeypatch.setattr(build, "BlockTests", MortalTests)
    with executor(2) as where:
        build.build(other, one.plan, options, executor=where)
    assert (other / "died").exists()
    assert not list(other.glob("*statistics*"))
    for relation in TESTED:
        of_one, of_other = (contents(at, relation, "ALL") for at in (one.folder, other))
        assert len(of_one), relation
        # DuckDB adds up in the order in which its threads come.
        assert_frame_equal(of_one, of_other, rel_tol=1e-11, abs_tol=1e-11)


def test_nodes_may_leave_and_join(cluster, reference, bare):
    folder, todo = bare
    make, committed, added = partial(Worker, folder, reference.plan, {}, None), [], []
    with opened("ray", "cpu", None, cluster.address) as where:
        lost = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        for job in where.run(make, todo, lambda *_: None, Clock()):
            committed.append(job)
            if len(committed) == 3:
                cluster.remove_node(lost)
                added.append(cluster.add_node(num_cpus=1))
    cluster.remove_node(added[0])
    assert sorted(committed) == sorted(todo)
    same_tables(reference, folder)


class Scripted:
    """Workers, two jobs at a time, that are ready in order; worker 1 dies of its first two jobs."""

    def __init__(self):
        self.given, self.said = [], [(0, Ready(2)), (1, Ready(2))]

    def give(self, worker, job):
        self.given.append((worker, job.shard))
        if worker == 0 or len(self.given) > 4:
            self.said.append((worker, Done(job)))
        elif [who for who, _ in self.given].count(1) == 2:
            self.said[:0] = [(1, Died("is dead")), (1, Ready(2))]

    def wait(self):
        yield self.said.pop(0)


def test_jobs_go_to_who_has_least_and_those_of_the_dead_come_last():
    todo, pool = [Job("m", str(i)) for i in range(7)], Scripted()
    assert sorted(dispatch.dispatch(todo, pool, lambda *_: None)) == todo
    assert pool.given[:4] == [(0, "0"), (0, "1"), (1, "2"), (1, "3")]
    assert {shard for _, shard in pool.given[-2:]} == {"2", "3"}
    assert len(pool.given) == 9


def test_more_workers_than_cards_are_refused(monkeypatch):
    monkeypatch.setattr("clsight.extractor.devices", lambda device: ["cuda:0", "cuda:1"])
    assert local.local("cuda", None).places == [jobs.Place("cuda:0", max(1, os.cpu_count() // 2)),
                                               jobs.Place("cuda:1", max(1, os.cpu_count() // 2))]
    with pytest.raises(UsageError, match="--workers 3: here are 2 cards"):
        local.local("cuda", 3)


def test_a_cluster_that_is_not_there_is_a_sentence():
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"--ray-address 127\.0\.0\.1:1"), \
            opened("ray", "cpu", None, "127.0.0.1:1"):
        pass
