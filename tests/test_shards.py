"""Shards are whole under their names, whatever happens, and know when they were changed."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsight import lock, shards
from clsight.errors import ClsightError

TABLE = pa.table({
    "row": range(50), "name": [f"document {i % 7}" for i in range(50)],
    "x": pa.array([[0.5 * i] * (i % 5) for i in range(50)], pa.list_(pa.float32())),
})


def test_a_shard_is_plain_parquet_with_the_rows_that_were_written(tmp_path):
    path = tmp_path / "some" / "folder" / "00000.parquet"
    shards.write(TABLE, path)
    assert pq.read_table(path).equals(TABLE)
    assert pq.read_table(path, page_checksum_verification=True).equals(TABLE)
    assert shards.is_sound(path)
    assert [p.name for p in path.parent.iterdir()] == ["00000.parquet"]


def test_any_changed_byte_is_found(tmp_path):
    path = tmp_path / "00000.parquet"
    shards.write(TABLE, path)
    content, random = path.read_bytes(), np.random.default_rng(0)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        assert not shards.is_sound(path), place
    for size in (0, 1, 7, 8, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert not shards.is_sound(path)
    path.write_bytes(content + b"\0")
    assert not shards.is_sound(path)
    path.write_bytes(content)
    assert shards.is_sound(path)


def test_parquet_of_others_is_not_taken_for_a_shard(tmp_path):
    pq.write_table(TABLE, tmp_path / "00000.parquet")
    assert not shards.is_sound(tmp_path / "00000.parquet")


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="in the middle"):
        _write_half(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def _write_half(path):
    with shards.replaced(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")


def test_what_cannot_be_read_back_does_not_get_its_name(tmp_path):
    def check(path):
        assert path.read_text() == "half"
        raise ClsightError("not what was written")

    with (pytest.raises(ClsightError, match="not what was written"),
          shards.replaced(tmp_path / "file", check) as temporary):
        temporary.write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_leftovers_and_nothing_else(tmp_path):
    kept = tmp_path / "bert" / "scores" / "00000.parquet"
    shards.write(TABLE, kept)
    left = kept.with_name(f"{shards.PARTIAL}00001.parquet-17")
    left.write_text("half")
    folder = tmp_path / f"{shards.PARTIAL}pairs-x"
    folder.mkdir()
    (folder / "0").write_text("pairs")
    shards.sweep(tmp_path)
    assert not left.exists()
    assert not folder.exists()
    assert shards.is_sound(kept)


def test_one_process_at_a_time_and_the_dead_hold_nothing(tmp_path):
    code = ("import sys, time; from pathlib import Path; from clsight import events, lock\n"
            "run = Path(sys.argv[1])\n"
            "with lock.held(run), events.logged(run):\n"
            "    events.event('started', **lock.me()); print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    assert lock.is_held(tmp_path)
    with (pytest.raises(ClsightError, match=f"at work in another process .process {other.pid} "),
          lock.held(tmp_path)):
        pass
    other.kill()
    other.wait()
    assert not lock.is_held(tmp_path)
    with lock.held(tmp_path):
        assert lock.is_held(tmp_path)
