"""What executors cost, and whether shards survive what happens to workers, nodes and drivers.

Overhead: the same shards of the real reviews by a bare loop (a worker that is handed one job after
the other by threads of its own, without an executor), by `local` in this process, by `local` in
another one, and by one Ray actor. From the first commit to the last, so that the start of a process
and the opening of the model, which a night has once, are left out; they are told apart. Seconds of
whole runs say little here: from run to run they differ by 30 %. So two things are counted within
each run, which noise hardly reaches: how long the device waited for its next shard, and how much of
a core everything took that is not the worker. What the worker itself does for an executor is in the
cost of a shard where there is nothing to do, which holds all that an executor does.

Trials: whole runs by the command line on a Ray cluster of several nodes in this machine, each held
against an undisturbed run of `local`: tables row for row, files, and the run's own checks.

    python benchmarks/executors.py [--rounds 5] [--trials [NAME ...]] [-o RESULT.json]

What is left out by `--rounds 0` or `--trials` without names stays in the result file as it was.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from result_file import SHARED, finish, hardware

from clsight import pipeline
from clsight.clock import Clock
from clsight.executors.dispatch import dispatch
from clsight.executors.jobs import Job, Place
from clsight.executors.local import Local, Processes, threads
from clsight.executors.ray import connected
from clsight.extract import Worker

sys.path.append(str(Path(__file__).parent / "survival"))

from kills import shards_in
from runs import Finished, generated

REVIEWS = SHARED / "data" / "rotten_tomatoes" / "unseen.parquet"
MODEL = SHARED / "models" / "minilm-rt"
SHARD = 128
"""Documents a shard: 34 shards of the reviews, each of them a fraction of a second of work, which
is a hundredth of what a shard of a night is."""
EMPTY, BATCHES = 2000, 4
"""Shards with nothing to do in a round, and batches that each reports."""
KILLS = 20


class Empty:
    """A worker that has nothing to do."""

    in_flight = 3

    def __init__(self, place, report, clock):
        self._report = report

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def take(self, job):
        for _ in range(BATCHES):
            self._report(job.model, 1)


def nothing(*_):
    pass


def bare(make, jobs, clock):
    """No executor at all: the worker's own threads, a job each until there is none."""
    worker = make(Place("cpu"), nothing, clock)
    with threads(worker.in_flight) as callers, worker:
        yield from callers.map(worker.take, jobs)


def processes(make, jobs, clock):
    """`local` as it is with several workers, with one."""
    with Processes(make, [Place("cpu", torch.get_num_threads())], clock.detailed) as pool:
        yield from dispatch(jobs, pool, nothing)
        for other in pool.end():
            clock.add(other, 1)


def local(make, jobs, clock):
    """`local` with one worker."""
    yield from Local([Place("cpu")]).run(make, jobs, nothing, clock)


def on_ray(make, jobs, clock):
    """One actor on a cluster of this machine."""
    with connected(None, "cpu", 1) as cluster:
        yield from cluster.run(make, jobs, nothing, clock)


SYSTEMS = {"bare": bare, "local": local, "local process": processes, "ray": on_ray}


def beside(system):
    """Seconds of a core that all took up to now that is not the worker."""
    if system in (bare, local):
        return time.thread_time()
    return time.process_time() + (rays() if system is on_ray else 0)


def rays():
    """Of Ray's processes, without actors."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = process.joinpath("cmdline").read_bytes()
            times = process.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:  # it has ended
            continue
        if b"/ray/" in command and not command.startswith(b"ray::_Actor"):
            found += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return found


def timed(system, make, jobs):
    """Seconds to the first commit and from each to the next, of waiting, and of all else."""
    clock, begun = Clock(), time.perf_counter()
    commits, before, after = [], 0, 0
    for _ in system(make, jobs, clock):
        commits.append(time.perf_counter())
        if len(commits) == 1:
            before = beside(system)
        elif len(commits) == len(jobs):
            after = beside(system)
    if len(commits) != len(jobs):
        raise SystemExit(f"{system.__name__}: {len(commits)} of {len(jobs)} shards")
    return {"first": commits[0] - begun, "others": [*map(float.__sub__, commits[1:], commits)],
            "wait": clock.seconds.get("wait", 0), "beside": after - before}


def extracted(system, plan, documents):
    """The reviews, by a worker as it is."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "documents").symlink_to(documents)
        make = partial(Worker, folder, plan, {}, 8192)
        return timed(system, make, [Job("minilm", name) for name in plan.shard_names()])


def empty(system):
    """Shards with nothing to do."""
    return timed(system, Empty, [Job("none", str(i)) for i in range(EMPTY)])


def overhead(rounds):
    """What each system takes beside what a bare loop takes, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        made = pipeline.run(str(REVIEWS), text="text", label="label",
                            models={"minilm": str(MODEL)}, output=Path(folder, "run"),
                            shard_size=SHARD)
        took = {name: [] for name in SYSTEMS}
        for i in range(rounds):
            for name in random.sample(list(SYSTEMS), len(SYSTEMS)):
                one = extracted(SYSTEMS[name], made.plan, made.folder / "documents")
                one["empty"] = sum(empty(SYSTEMS[name])["others"]) / (EMPTY - 1)
                took[name].append(one)
                print(f"round {i}, {name}: {one['first']:.2f} s to the first, "
                      f"{sum(one['others']):.2f} s, of which {one['wait']:.3f} s waiting; "
                      f"{one['beside']:.3f} s beside; {1000 * one['empty']:.3f} ms with nothing to "
                      "do", file=sys.stderr)
    systems = {name: compared(own, took["bare"]) for name, own in took.items()}
    systems["bare"]["shards_s"] = [round(one, 4) for one in took["bare"][-1]["others"]]
    return {"documents": made.plan.n_rows, "shards": made.plan.n_shards, "dtype": made.plan.dtype,
            "rounds": rounds, "systems": systems}


def compared(own, base):
    """A system beside the bare loop; [median, least, most] over the rounds."""
    lasted = [sum(one["others"]) for one in own]
    shard = statistics.median(sum(one["others"]) for one in base) / len(base[0]["others"])
    wait = statistics.median(one["wait"] for one in base) / len(base[0]["others"])
    waits = [one["wait"] / len(one["others"]) for one in own]
    beside_ = [one["beside"] / len(one["others"]) for one in own]
    counted = [(w - wait + b) / shard for w, b in zip(waits, beside_, strict=True)]
    return {
        "first_commit_s": statistics.median(one["first"] for one in own),
        "others_s": statistics.median(lasted),
        "over_bare": spread(a / sum(b["others"]) for a, b in zip(lasted, base, strict=True)),
        "wait_ms_per_shard": spread(1000 * one for one in waits),
        "beside_ms_per_shard": spread(1000 * one for one in beside_),
        "empty_ms_per_shard": spread(1000 * one["empty"] for one in own),
        "counted_overhead": spread(counted),
    }


def spread(values):
    found = sorted(values)
    return [statistics.median(found), found[0], found[-1]]


@contextmanager
def nodes(n):
    """A cluster of `n` nodes with a core each, and a first one without any."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        added = [cluster.add_node(num_cpus=1) for _ in range(n)]
        cluster.wait_for_nodes()
        yield cluster, added
    finally:
        cluster.shutdown()


def started(case, run, cluster, workers):
    """The command, as a process."""
    return subprocess.Popen(
        [*case.command(run), "--executor", "ray", "--ray-address", cluster.address,
         *(["--workers", str(workers)] if workers else [])],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def committed(case, run):
    return sum(shards_in(run / model / "scores") for model in case.models)


def wait_for(process, case, run, n):
    """Until `n` shards more than now are committed; False where the run ended before."""
    wanted = committed(case, run) + n
    while process.poll() is None:
        if committed(case, run) >= wanted:
            return True
        time.sleep(0.005)
    return False


def undisturbed(case, run, workers):
    with nodes(workers) as (cluster, _):
        yield started(case, run, cluster, workers)


def node_lost_and_added(case, run):
    """One of two nodes goes, another comes."""
    with nodes(2) as (cluster, added):
        process = started(case, run, cluster, None)
        if wait_for(process, case, run, 20):
            cluster.remove_node(added[0], allow_graceful=False)
        if wait_for(process, case, run, 10):
            cluster.add_node(num_cpus=1)
        yield process


def driver_killed(case, run):
    """The command is killed, and given again."""
    with nodes(2) as (cluster, _):
        process = started(case, run, cluster, 2)
        wait_for(process, case, run, 20)
        process.kill()
        process.wait()
        yield started(case, run, cluster, 2)


def workers_killed(case, run):
    """An actor of two is killed, as often as `KILLS`, each time after another commit."""
    with nodes(2) as (cluster, _):
        process, killed = started(case, run, cluster, 2), 0
        while killed < KILLS and wait_for(process, case, run, 1):
            actors = subprocess.run(["pgrep", "-f", "^ray::_Actor"], capture_output=True, text=True)
            if pids := actors.stdout.split():
                os.kill(int(random.choice(pids)), signal.SIGKILL)
                killed += 1
        if killed < KILLS:
            raise SystemExit(f"only {killed} of {KILLS} workers could be killed")
        yield process


TRIALS = {
    "1 worker": partial(undisturbed, workers=1), "2 workers": partial(undisturbed, workers=2),
    "4 workers": partial(undisturbed, workers=4), "node lost and added": node_lost_and_added,
    "driver killed": driver_killed, f"worker killed {KILLS} times": workers_killed,
}


def trials(names):
    """What each trial's tables have otherwise than an undisturbed local run."""
    os.environ["OMP_NUM_THREADS"] = "1"  # else the order of sums follows the number of threads
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        case = generated(folder, 2000, shard_size=25)
        subprocess.run([*case.command(folder / "local"), "--workers", "1"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reference = Finished.read(folder / "local")
        for name in names:
            run, begun = folder / "run", time.monotonic()
            shutil.rmtree(run, ignore_errors=True)
            for process in TRIALS[name](case, run):
                _, said = process.communicate()
            different = [said] if process.returncode else reference.differences(run)
            lost, doubled = (0, 0) if process.returncode else reference.lost_and_doubled(run)
            found[name] = {"seconds": round(time.monotonic() - begun, 1), "lost": lost,
                           "doubled": doubled, "different": different}
            print(name, json.dumps(found[name])[:2000], file=sys.stderr)
    return {"documents": 2000, "shards": 80, "models": len(case.models), "trials": found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", nargs="*", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    result = {}
    if arguments.output and arguments.output.exists():
        result = json.loads(arguments.output.read_text())
    result |= {"benchmark": "executors", "ray": ray.__version__} | hardware()
    if arguments.rounds:
        result |= {"overhead": overhead(arguments.rounds)}
    if arguments.trials:
        result |= {"disturbed": trials(arguments.trials)}
    finish(result, arguments.output)


if __name__ == "__main__":
    main()
