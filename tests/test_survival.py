"""A run that is disturbed anywhere goes on by the same command, and comes to the same tables.

A few places of each kind; `benchmarks/survival` tries them all, and for a night.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "survival"))

from faults import Server, trial
from flips import found
from kills import shards_in
from runs import Finished, generated


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here, which makes the faults")
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("case"), 60, shard_size=30,
                     options=("--min-documents", "10"))


@pytest.fixture(scope="module")
def reference(server, case, tmp_path_factory):
    """An undisturbed run: its folder, what it holds, and the changes that it made to its folder."""
    run = tmp_path_factory.mktemp("reference") / "run"
    made = server.run(case, run)
    assert made.code == 0, made.stderr
    return run, Finished.read(run), made.calls


@pytest.mark.parametrize(("what", "share"), [
    ("killed", 0.02), ("power cut", 0.1), ("killed", 0.4), ("power cut", 0.6), ("killed", 0.8),
    ("power cut", 0.98), ("disk full", 0.15), ("disk full", 0.5), ("disk full", 0.85),
    ("short write, disk full", 0.95),
])
def test_the_same_command_goes_on_after_any_change(server, case, reference, tmp_path, what, share):
    """Nothing half-written under a final name, a sentence, and then the same tables and files."""
    _, finished, calls = reference
    at = round(share * len(calls))
    wrong, first = trial(server, case, finished, tmp_path / "run", what, at)
    assert wrong == []
    assert first.code == (-9 if what in ("killed", "power cut") else 1)


def test_flipped_bytes_are_found_wherever_they_are(reference):
    run, _, _ = reference
    counts = found(run, sorted(run.rglob("*.parquet")), 60, seed=3)
    assert counts["not_named"] == []
    assert counts["named"] == 60


def test_a_run_that_was_asked_to_end_comes_to_the_same_tables(server, tmp_path):
    case, run = generated(tmp_path, 800, shard_size=40), tmp_path / "run"
    assert server.run(case, tmp_path / "reference").code == 0
    process = subprocess.Popen(case.command(run), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    while shards_in(run / "bert" / "attention") < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 5
    assert process.returncode == 1
    kept = shards_in(run / "bert" / "attention")
    assert f"{kept} of 20 shards of bert" in said
    assert server.run(case, run).code == 0
    assert Finished.read(tmp_path / "reference").differences(run) == []
