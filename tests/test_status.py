"""A run seen from outside, and how it ends when it is asked to."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsight import events, lock, shards, status
from clsight.errors import ClsightError
from conftest import demo_models
from test_pipeline import contents, run


@pytest.fixture
def slow_data(reviews, tmp_path):
    """Reviews enough for a run of some ten seconds."""
    table = pq.read_table(reviews)
    pq.write_table(pa.concat_tables([table] * 40), tmp_path / "slow.parquet")
    return tmp_path / "slow.parquet"


def command(data, output, *more):
    models = [part for pair in demo_models().items() for part in ("--model", "=".join(pair))]
    return [sys.executable, "-m", "clsight.cli", "run", str(data), "--text", "text", "--label",
            "label", *models, "-o", str(output), "--shard-size", "1000", "--dtype", "float32",
            *more]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_within_seconds_and_say_what_is_kept(slow_data, tmp_path, number):
    folder = tmp_path / "run"
    process = subprocess.Popen(command(slow_data, folder), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: shards.done(folder / "bert" / "attention"))
    seen = status.status(folder)
    assert (seen.state, seen.exit_code) == ("running", 3)
    assert str(process.pid) in seen.holder
    process.send_signal(number)
    before = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - before < 5
    assert process.returncode == 1
    kept = re.search(rf"stopped by {number.name}; kept: 24,000 documents, (\d+) of 24 shards of "
                     "bert.*the same command", said)
    assert int(kept[1]) == len(shards.done(folder / "bert" / "attention")) > 0
    assert "Traceback" not in said
    assert not list(folder.rglob(".partial-*"))
    seen = status.status(folder)
    assert (seen.state, seen.exit_code) == ("stopped", 1)
    assert seen.last == f"stopped by {number.name}"
    assert lock.is_held(folder) is False


def test_a_signal_ends_what_python_cannot_interrupt(tmp_path):
    code = ("import ctypes; from clsight.stopping import stoppable\n"
            "with stoppable(lambda: 'kept: all'):\n"
            "    print('on', flush=True); ctypes.CDLL(None).sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    before = time.monotonic()
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - before < 5
    assert process.returncode == 1
    assert "stopped by SIGTERM; kept: all" in said


def test_a_complete_run_says_so(small_run):
    seen = status.status(small_run.folder)
    assert (seen.state, seen.exit_code) == ("complete", 0)
    assert (seen.n_rows, seen.bad_documents, seen.n_shards) == (600, 0, 3)
    assert {(m.documents, m.extracted, m.scored) for m in seen.models.values()} == {(600, 3, 3)}
    assert status.lines(seen)[0].endswith(": complete")
    stored = json.loads(json.dumps(status.as_dict(seen)))
    assert stored["models"]["bert"]["documents"] == 600


def test_rate_and_time_left_follow_the_events(small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    (folder / "clsight.duckdb").unlink()
    shutil.rmtree(folder / "roberta" / "attention")
    lines = [
        {"event": "started", "process": 17, "host": "here"},
        *({"event": "progress", "stage": "roberta", "done": done} for done in (0, 100, 200)),
        {"event": "retried", "model": "bert", "rows": [3, 4]},
        {"event": "retried", "model": "bert", "rows": [4]},
        {"event": "failed", "model": "bert", "rows": [4]},
    ]
    written = "".join(
        json.dumps({"time": f"2026-01-01T00:{i:02d}:00+00:00", "message": "", **line}) + "\n"
        for i, line in enumerate(lines))
    (folder / events.FILE).write_text(written + '{"time": "2026-01-')
    with lock.held(folder):
        seen = status.status(folder)
    assert seen.rate == pytest.approx(100 / 60)
    assert seen.seconds_left == pytest.approx(400 / (100 / 60))
    assert (seen.stage, seen.retried, seen.failed) == ("roberta", 2, 1)
    assert "process 17 on here" in seen.holder


def test_events_are_one_json_object_a_line_also_behind_a_torn_one(tmp_path):
    path = tmp_path / events.FILE
    path.parent.mkdir()
    path.write_text('{"time": "2026-01-01T00:00:00+00:00", "event": "a"}\n{"time": "2026')
    with events.logged(tmp_path):
        events.event("b", "two\nlines \x1b[0m \udcff", rows=[1, 2])
    assert [e["event"] for e in events.read(tmp_path)] == ["a", "b"]
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["rows"] == [1, 2]
    assert b"\x1b" not in path.read_bytes()


def test_a_log_that_takes_no_lines_stops_nothing(tmp_path, capsys):
    (tmp_path / "log").mkdir()
    (tmp_path / events.FILE).symlink_to("/dev/full")
    with events.logged(tmp_path):
        events.event("a")
        events.event("b")
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_what_ends_a_run_is_an_event(tmp_path):
    with pytest.raises(ClsightError), events.logged(tmp_path):
        raise ClsightError("no more")
    with pytest.raises(ZeroDivisionError), events.logged(tmp_path):
        _ = 1 / 0
    known, unknown = events.read(tmp_path)
    assert (known["message"], known["error"]) == ("no more", "ClsightError")
    assert "1 / 0" in unknown["trace"]


def test_a_stopped_run_goes_on_to_the_same_tables(reviews, small_run, tmp_path):
    def stop(stage, n, total):
        if stage == "roberta":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(reviews, tmp_path / "run", progress=stop)
    made = run(reviews, tmp_path / "run")
    order = "model, document_id, position"
    assert contents(made.folder, "words", order).equals(contents(small_run.folder, "words", order))


def test_child_processes_end_with_a_parent_that_was_killed(tmp_path):
    code = ("import os, time\nfrom clsight.extract import _processes\n"
            "if __name__ == '__main__':\n"
            "    with _processes(1) as pool:\n"
            "        print(pool.submit(os.getpid).result(), flush=True); time.sleep(60)")
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE)
    child = Path("/proc", parent.stdout.readline().decode().strip())
    assert child.exists()
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.exists() or "(zombie)" in (child / "status").read_text())
