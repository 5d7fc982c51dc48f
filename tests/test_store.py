"""Runs in object storage: the same tables as on a disk, whatever the storage and machines do."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import fsspec
import pytest

from clsight import (
    build,
    events,
    lease,
    lock,
    object_storage,
    run_folder,
    shards,
    status,
    store,
    verify,
)
from clsight.errors import ClsightError, UsageError
from clsight.executors.jobs import Place
from s3_server import SECRET, started
from test_parts import RELATIONS, command, in_part
from test_pipeline import OPTIONS, assert_same_statistics, contents, run


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Become another machine: `machine("b")` has mirrors of its own, and has opened none."""
    def become(name):
        monkeypatch.setenv(store.CACHE, str(tmp_path / name))
        monkeypatch.setattr(store, "_stores", {})
        monkeypatch.setattr(lease, "_lost", set())

    become("a")
    return become


@pytest.fixture
def bucket():
    """A new place in this process's memory, as a URL, and its filesystem."""
    filesystem = fsspec.filesystem("memory")
    url = f"memory://bucket-{time.monotonic_ns()}/runs/one"
    yield url, filesystem
    with suppress(FileNotFoundError):
        filesystem.rm(url.partition(":/")[2].rpartition("/runs")[0], recursive=True)


def written(folder, name, content):
    with shards.replaced(folder / name) as path:
        path.write_bytes(content)
    return folder / name


def objects(url, filesystem):
    root = url.partition(":/")[2]
    return {name.removeprefix(f"{root}/") for name in filesystem.find(root)}


def test_what_is_committed_here_is_there_and_found_by_others(machine, bucket):
    url, filesystem = bucket
    here = store.folder(url)
    written(here, "plan.json", b"1")
    written(here / "bert" / "scores", "00000.parquet", b"22")
    written(here / ".partial-x", "00001.parquet", b"3")
    (here / ".lock").touch()
    assert objects(url, filesystem) == {"plan.json", "bert/scores/00000.parquet"}
    machine("b")
    there = store.folder(url)
    assert there != here
    assert shards.done(there / "bert" / "scores") == {"00000.parquet"}
    assert store.names(there) == {"plan.json", "bert"}
    assert store.exists(there / "plan.json")
    assert not store.exists(there / "bert")
    assert not (there / "plan.json").exists()
    assert store.fetched(there / "plan.json").read_bytes() == b"1"
    assert not store.fetched(there / "nothing").exists()
    store.fetch(there / "bert" / "scores", there / "nothing")
    assert (there / "bert" / "scores" / "00000.parquet").read_bytes() == b"22"
    assert f"{there / 'bert'}" == f"{url}/bert"
    assert os.fspath(there / "bert").startswith(os.environ[store.CACHE])


def test_a_mirror_loses_what_others_changed_or_removed_and_nothing_else(machine, bucket):
    url, _ = bucket
    here = store.folder(url)
    written(here / "log", "plan.json", b"1")
    for name in ("same", "changed", "removed"):
        written(here / "bert", name, b"1")
    machine("b")
    there = store.folder(url)
    store.fetch(there / "bert", there / "log")
    (there / "bert" / ".partial-mine").touch()
    machine("a")
    here = store.folder(url)
    assert sorted(path.name for path in (here / "bert").iterdir()) == ["changed", "removed", "same"]
    written(here / "bert", "changed", b"22")
    written(here / "log", "plan.json", b"22")
    shards.remove([here / "bert" / "removed"])
    machine("b")
    there = store.folder(url)
    assert {path.name for path in (there / "bert").iterdir()} == {"same", ".partial-mine"}
    assert store.fetched(there / "bert" / "changed").read_bytes() == b"22"
    assert store.fetched(there / "log" / "plan.json").read_bytes() == b"22"
    shards.remove([there / "bert", there / "log"])
    assert store.names(there) == set()


def test_a_copy_that_is_as_long_as_the_new_object_is_told_by_its_time(machine, bucket):
    url, filesystem = bucket
    path = written(store.folder(url), "plan.json", b"1")
    root = url.partition(":/")[2]
    filesystem.pipe_file(f"{root}/plan.json", b"2")
    filesystem.store[f"{root}/plan.json"].created += timedelta(seconds=2)
    assert store.fetched(path).read_bytes() == b"1"
    store.folder(url)
    assert store.fetched(path).read_bytes() == b"2"


def test_files_that_grow_are_brought_where_there_is_more_of_them(machine, bucket):
    url, _ = bucket
    for name, kinds in (("a", ["one", "two"]), ("b", ["three"]), ("a", ["four"])):
        machine(name)
        folder = store.folder(url)
        with events.logged(folder):
            for kind in kinds:
                events.event(kind)
    machine("c")
    assert [e["event"] for e in events.read(store.folder(url))] == ["one", "two", "three", "four"]


def test_a_file_that_grows_is_uploaded_while_it_does(machine, bucket, monkeypatch):
    url, filesystem = bucket
    monkeypatch.setattr(store, "EVERY", 0.05)
    folder = store.folder(url)
    with events.logged(folder):
        events.event("seen")
        until = time.monotonic() + 10
        while objects(url, filesystem) != {events.FILE} and time.monotonic() < until:
            time.sleep(0.02)
        assert objects(url, filesystem) == {events.FILE}


@pytest.mark.parametrize("failing", [OSError("503"), TimeoutError("late"), RuntimeError("odd")])
def test_requests_that_fail_are_repeated_and_a_storage_that_is_gone_is_a_sentence(
    machine, bucket, monkeypatch, failing
):
    url, filesystem = bucket
    folder, original, calls = store.folder(url), filesystem.put_file, []

    def often(*arguments, **more):
        calls.append(arguments)
        if len(calls) < 3:
            raise failing
        return original(*arguments, **more)

    monkeypatch.setattr(object_storage, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(type(filesystem), "put_file", lambda _, *a, **k: often(*a, **k))
    written(folder, "plan.json", b"1")
    assert len(calls) == 3
    monkeypatch.setattr(object_storage, "PATIENCE", 0.05)

    def always(*_, **__):
        raise failing

    monkeypatch.setattr(type(filesystem), "put_file", always)
    with pytest.raises(ClsightError, match=rf"{url}/two cannot be written: {failing}; what is "):
        written(folder, "two", b"2")
    assert not (folder / "two").exists()


def test_objects_that_are_not_whole_are_refused(machine, bucket, monkeypatch):
    url, filesystem = bucket
    folder = store.folder(url)
    monkeypatch.setattr(type(filesystem), "put_file",
                        lambda self, path, name: self.pipe_file(name, b"1"))
    with pytest.raises(ClsightError, match="is 1 bytes in the storage, where 3 bytes were written"):
        written(folder, "plan.json", b"123")
    assert not (folder / "plan.json").exists()


def test_places_that_cannot_be(machine, monkeypatch):
    with pytest.raises(UsageError, match="must not hold passwords"):
        store.folder("s3://key:secret@bucket/run")
    with pytest.raises(UsageError, match="must not hold passwords"):
        store.folder("az://bucket/run?sig=secret")
    with pytest.raises(UsageError, match="nonsense"):
        store.folder("nonsense://bucket/run")
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(UsageError, match=r"pip install 'clsight\[gcs\]'"):
        store.folder("gs://bucket/run")


def test_paths_are_where_they_are(tmp_path):
    assert store.folder(tmp_path / "run") == tmp_path / "run"
    assert store.folder(str(tmp_path)) == tmp_path
    assert store.folder(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert store.place(tmp_path) == str(tmp_path)


def test_one_machine_at_a_time_has_a_run(machine, bucket, monkeypatch):
    url, filesystem = bucket
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "LOOK", 0.02)
    machine("a")
    mine = store.folder(url)
    with lock.held(mine):
        assert lock.is_held(mine)
        stores = dict(store._stores)
        machine("b")
        theirs = store.folder(url)
        store._stores.update(stores)
        assert lock.is_held(theirs)
        with pytest.raises(ClsightError, match="at work in another process"), lock.held(theirs):
            pass
        assert objects(url, filesystem) == {".lock"}
    assert objects(url, filesystem) == set()
    with lock.held(theirs):
        pass


def test_work_that_fails_gives_its_lease_back(machine, bucket):
    url, filesystem = bucket
    folder = store.folder(url)
    with pytest.raises(ZeroDivisionError), lock.held(folder):
        raise ZeroDivisionError
    assert objects(url, filesystem) == set()
    assert not lock.is_held(folder)


def test_the_lease_of_a_machine_that_died_is_taken_over(machine, bucket, monkeypatch):
    url, filesystem = bucket
    monkeypatch.setattr(lease, "LOOK", 0.02)
    monkeypatch.setattr(lease, "PATIENCE", 0.3)
    dead = {"token": "x", "mirror": "elsewhere 1", "beat": 3,
            "time": datetime.now(UTC).isoformat()}
    filesystem.pipe_file(f"{url.partition(':/')[2]}/.lock", json.dumps(dead).encode())
    folder, begun = store.folder(url), time.monotonic()
    with lock.held(folder):
        assert time.monotonic() - begun >= 0.3
    assert objects(url, filesystem) == set()
    # What this machine left behind is free at once: the lock of the mirror says that it died.
    held_in = store.of(folder)
    mine = {**dead, "mirror": lease._identity(held_in)}
    filesystem.pipe_file(f"{url.partition(':/')[2]}/.lock", json.dumps(mine).encode())
    begun = time.monotonic()
    with lock.held(folder):
        assert time.monotonic() - begun < 0.3


def test_who_lost_the_lease_ends_and_leaves_it_to_the_other(machine, bucket, monkeypatch):
    url, filesystem = bucket
    monkeypatch.setattr(lease, "BEAT", 0.02)
    folder, name = store.folder(url), f"{url.partition(':/')[2]}/.lock"
    other = json.dumps({"token": "x", "mirror": "elsewhere 1", "beat": 3, "time": "2026-01-01"})
    with lock.held(folder):
        lease.refuse_lost(folder)
        filesystem.pipe_file(name, other.encode())
        until = time.monotonic() + 10
        while not lease._lost and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(ClsightError, match="was taken over by another machine"):
            lease.refuse_lost(folder)
    assert filesystem.cat_file(name).decode() == other
    lease.refuse_lost(folder)


def test_a_folder_of_others_is_refused(machine, bucket, reviews):
    url, filesystem = bucket
    filesystem.pipe_file(f"{url.partition(':/')[2]}/thesis.txt", b"mine")
    with pytest.raises(UsageError, match=f"{url} is not a clsight run and not empty"):
        run(reviews, url)


def test_a_run_is_that_of_a_disk_and_fetches_what_a_question_needs(
    machine, bucket, reviews, small_run
):
    url, filesystem = bucket
    made = run(reviews, url)
    for relation, order in RELATIONS.items():
        one, other = (contents(at, relation, order) for at in (made.folder, small_run.folder))
        assert one.equals(other), relation
    assert_same_statistics(made.folder, small_run.folder)
    expected = {path.relative_to(small_run.folder).as_posix()
                for path in small_run.folder.rglob("*") if path.is_file()}
    assert objects(url, filesystem) == expected - {".lock"}
    machine("b")
    other = run_folder.open_run(url)
    assert status.status(other.folder).state == "complete"
    other.over_attended()
    assert {path.parent.name for path in other.folder.rglob("*.parquet")} == {"sums"}
    assert other.sql("SELECT count(*) AS n FROM documents")["n"].item() == 600
    assert not list(other.folder.glob("*/scores/*"))
    other.document(3)
    assert len(list(other.folder.glob("*/scores/*"))) == 6


class OtherMachine:
    """An executor whose only worker is on another machine, and has seen nothing of the run."""

    elsewhere, n_workers = True, 1

    def __init__(self, machine, url, filesystem):
        self.machine, self.url, self.filesystem, self.seen = machine, url, filesystem, set()

    def run(self, make, jobs, report, clock):
        self.machine("b")
        with make(Place("cpu"), report, clock) as worker:
            for job in jobs:
                worker.take(job)
        self.seen |= objects(self.url, self.filesystem)
        self.machine("a")
        store.folder(self.url)
        yield from jobs


def test_statistics_may_be_made_by_machines_that_share_the_storage_alone(
    machine, bucket, reviews, small_run
):
    url, filesystem = bucket
    made = run(reviews, url)
    executor = OtherMachine(machine, url, filesystem)
    build.build(made.folder, made.plan, OPTIONS, executor=executor)
    assert_same_statistics(made.folder, small_run.folder)
    through = {name.split("/")[2] for name in executor.seen if name.startswith("statistics/")}
    assert through == {"documents", "pairs", "moments.npz", "found"}
    assert not any("statistics" in name for name in objects(url, filesystem))
    assert not list(made.folder.glob("*statistics*"))


def test_what_is_lost_or_damaged_there_is_named_and_made_again(machine, bucket, reviews, small_run):
    url, filesystem = bucket
    folder, root = run(reviews, url).folder, url.partition(":/")[2]
    assert verify.verify(folder) == []
    filesystem.rm(f"{root}/bert/scores/00001.parquet")
    damaged = bytearray(filesystem.cat_file(f"{root}/documents/00000.parquet"))
    damaged[100] ^= 1
    filesystem.pipe_file(f"{root}/documents/00000.parquet", bytes(damaged))
    filesystem.pipe_file(f"{root}/bert/scores/99999.parquet", b"mine")
    found = {(problem.file, problem.kind) for problem in verify.verify(folder)}
    assert found >= {("bert/scores/00001.parquet", "missing"),
                     ("documents/00000.parquet", "damaged"),
                     ("bert/scores/99999.parquet", "foreign")}
    machine("b")
    assert verify.repair(store.folder(url)) == []
    assert_same_statistics(store.folder(url), small_run.folder)
    assert filesystem.cat_file(f"{root}/bert/scores/99999.parquet{verify.ASIDE}") == b"mine"


def test_a_night_on_s3_that_fails_and_throttles(reviews, small_run, tmp_path):
    """5 % of requests fail, half of them after they were done; the machine is killed, and comes
    back without its disk. What comes out is what a disk has, and nothing tells a secret."""
    with started("bucket") as server:
        url = "s3://bucket/runs/one"
        server.failing = 0.05

        def environment(name):
            return {**os.environ, **server.environment, store.CACHE: str(tmp_path / name)}

        def asked(name, *what):
            done = subprocess.run(command(*what), env=environment(name), capture_output=True,
                                  text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout

        whole = in_part(reviews, url, "0/1")[:-2]
        killed = subprocess.Popen(whole, env=environment("a"), stderr=subprocess.PIPE)
        until = time.monotonic() + 120
        while not any("PUT" in one and "/scores/" in one for one in server.seen):
            assert time.monotonic() < until
            assert killed.poll() is None, killed.stderr.read()
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        (lost,) = (tmp_path / "a").iterdir()
        (tmp_path / "b" / lost.name).mkdir(parents=True)
        shutil.copy(lost / ".machine", tmp_path / "b" / lost.name)
        n_asked = len(server.seen)
        done = subprocess.run(whole, env=environment("b"), capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        assert "PUT /bucket/runs/one/documents/00000.parquet" not in server.seen[n_asked:]
        assert asked("c", "query", url, "findings", "--format", "csv").count("\n") > 1
        assert "no problems" in subprocess.run(
            command("verify", url), env=environment("c"), capture_output=True, text=True).stderr
        assert server.failed > 5
        (folder,) = [path for path in (tmp_path / "c").iterdir() if path.is_dir()]
        (folder / store.MARK).unlink()  # a folder like any other now
        for relation, order in RELATIONS.items():
            one, other = (contents(at, relation, order) for at in (folder, small_run.folder))
            assert one.equals(other), relation
        assert_same_statistics(folder, small_run.folder)
        texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(SECRET.encode() in text for text in texts)
