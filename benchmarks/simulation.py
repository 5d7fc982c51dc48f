"""100,000 shards on 256 workers that die now and then: what the executors themselves cost.

The executors are the real ones; their workers sleep instead of extracting, for as long as shards of
the real reviews took (`results/executors.json`), scaled to a mean of half a second: a shard of a
night takes a minute, so that what is told of one night here is the load of a hundred of them. One
shard in 2,000 kills its worker. `ray` has fewer workers, since each is a whole interpreter here.

    python benchmarks/simulation.py [--system local] [--shards 100000] [--workers 256] [-o FILE]
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from executors import rays
from result_file import finish, hardware

from clsight.executors import dispatch
from clsight.executors.dispatch import Died, Ready
from clsight.executors.jobs import Job, Place
from clsight.executors.local import Processes

MEASURED = Path(__file__).parent / "results" / "executors.json"
MEAN = 0.5
"""Seconds of a shard here."""
DEADLY = 2000
"""Of as many shards one kills its worker, the first time."""


class Sleeping:
    """A worker that commits an empty file after as long as a shard took; shards one by one."""

    in_flight = 2

    def __init__(self, folder, durations, *_):
        self._folder, self._durations, self._model = folder, durations, threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def take(self, job):
        drawn = random.Random(job.shard)
        seconds, deadly = drawn.choice(self._durations), drawn.randrange(DEADLY) == 0
        with self._model:
            time.sleep(seconds * drawn.random() if deadly else seconds)
            if deadly:
                self._die_once(job)
        with open(self._folder / job.shard, "a") as file:
            file.write("done\n")

    def _die_once(self, job):
        try:
            (self._folder / f"{job.shard}.died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class Watched:
    """A pool, and when what happened in it."""

    def __init__(self, pool, folder):
        self._pool, self._folder, self._has, self._died = pool, folder, {}, {}
        self.recovered, self.given, self.last_given, self.ready = [], 0, 0.0, None

    def give(self, worker, job):
        self.given, self.last_given = self.given + 1, time.monotonic()
        self._has.setdefault(worker, []).append(job.shard)
        self._pool.give(worker, job)

    def wait(self):
        for worker, message in self._pool.wait():
            if isinstance(message, Died):
                self._died[worker] = self._death(self._has.pop(worker, []))
            elif isinstance(message, Ready):
                self.ready = self.ready or time.monotonic()
                if worker in self._died:
                    self.recovered.append(time.time() - self._died.pop(worker))
            yield worker, message

    def _death(self, had):
        """When a worker died that had these shards: it left a file for the last of all it had."""
        left = [self._folder / f"{shard}.died" for shard in had]
        return max(path.stat().st_mtime for path in left if path.exists())


@contextmanager
def local(make, workers):
    with Processes(make, [Place("cpu", 1)] * workers, False) as pool:
        yield pool


@contextmanager
def on_ray(make, workers):
    from ray.cluster_utils import Cluster

    from clsight.executors.ray import Actors, connected

    sys.modules["ray"].cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": workers})
    try:
        with (connected(cluster.address, "cpu", workers) as where,
              Actors(make, where, False) as pool):
            yield pool
    finally:
        cluster.shutdown()


SYSTEMS = {"local": local, "ray": on_ray}


def simulated(system, n_shards, workers, durations):
    """A night: what it took beside the sleep of the workers."""
    jobs = [Job("model", f"{i:06d}") for i in range(n_shards)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with SYSTEMS[system](partial(Sleeping, folder, durations), workers) as pool:
            watched, done, begun = Watched(pool, folder), Counter(), time.monotonic()
            cpu, others = time.process_time(), rays() if system == "ray" else 0
            for job in dispatch.dispatch(jobs, watched, lambda *_: None):
                done[job.shard] += 1
            ended, cpu = time.monotonic(), time.process_time() - cpu
            head = {}
            if system == "ray":
                head = {"ray_ms_per_shard": 1000 * (rays() - others) / n_shards,
                        "gcs_mib": gcs_mib()}
        committed = Counter({path.name: path.read_text().count("done")
                             for path in folder.iterdir() if path.suffix != ".died"})
        deaths = sum(path.suffix == ".died" for path in folder.iterdir())
    slept = sum(random.Random(job.shard).choice(durations) for job in jobs)
    ideal = slept / workers
    return {
        "shards": n_shards, "workers": workers, "deaths": deaths,
        "lost": n_shards - len(done), "told_twice": sum(n > 1 for n in done.values()),
        "committed_twice": sum(n > 1 for n in committed.values()),
        "given": watched.given,
        "first_worker_ready_s": watched.ready - begun, "wall_s": ended - begun, "ideal_s": ideal,
        "efficiency": ideal / (ended - begun), "tail_s": ended - watched.last_given,
        "recovery_s": [statistics.median(watched.recovered), max(watched.recovered)]
        if watched.recovered else None,
        "driver_cpu_share": cpu / (ended - begun), "driver_ms_per_shard": 1000 * cpu / n_shards,
    } | head


def gcs_mib():
    """Memory of the process in which a Ray cluster keeps what it knows."""
    pid = subprocess.run(["pgrep", "-o", "-f", "gcs/gcs_server"], capture_output=True,
                         text=True, check=True).stdout.strip()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", default="local", choices=list(SYSTEMS))
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("-o", "--output", type=Path, help="result file; systems are added to it")
    arguments = parser.parse_args()
    measured = json.loads(MEASURED.read_text())["overhead"]["systems"]["bare"]["shards_s"]
    durations = [MEAN * one / statistics.mean(measured) for one in measured]
    systems = {}
    if arguments.output and arguments.output.exists():
        systems = json.loads(arguments.output.read_text())["systems"]
    systems[arguments.system] = simulated(arguments.system, arguments.shards, arguments.workers,
                                          durations)
    finish({"benchmark": "simulation", "mean_shard_s": MEAN, "systems": systems} | hardware(),
           arguments.output)


if __name__ == "__main__":
    main()
