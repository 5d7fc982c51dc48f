"""A disk that fills in the middle of a run, and gets more room."""

import subprocess
from contextlib import contextmanager

from faults import Outcome, unlike_an_answer
from reader import failure, final
from runs import Finished

SHARES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2)
"""Of the bytes of a finished run: how large the disk is at first."""
MORE = 64 << 20
"""Bytes of the disk after that; beside the run there is what is being made."""


@contextmanager
def disk(folder, size):
    """A file system in memory, of `size` bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True,
                   capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def can_mount(folder):
    """True where this user may mount."""
    try:
        with disk(folder / "tried", 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def command(case, run):
    """The command, from beginning to end."""
    ended = subprocess.run(case.command(run), capture_output=True, text=True, check=False)
    return Outcome(ended.returncode, [], ended.stderr)


def disks(case, folder, say):
    """Disks of several sizes; what they did, for the result file."""
    if not can_mount(folder):
        return {"skipped": "mounting a file system takes more rights than this user has"}
    if command(case, folder / "reference").code:
        raise SystemExit(f"{' '.join(case.command(folder / 'reference'))} failed")
    reference = Finished.read(folder / "reference")
    size = sum(path.stat().st_size for path in (folder / "reference").rglob("*"))
    tried = []
    for share in SHARES:
        code, said, wrong = trial(case, reference, folder / "disk", int(share * size))
        tried.append({"share": share, "exit": code, "said": said, "wrong": wrong})
        say(str(tried[-1]))
    return {"run_bytes": size, "disks": tried}


def trial(case, reference, folder, size):
    """Exit code and last line of the command on too small a disk; and what was wrong after it."""
    run = folder / "run"
    with disk(folder, size):
        first = command(case, run)
        wrong = [why for path in final(run) if (why := failure(path))]
        wrong += unlike_an_answer(first, "fail-on")
        subprocess.run(["mount", "-o", f"remount,size={size + MORE}", str(folder)], check=True)
        resumed = command(case, run)
        if resumed.code:
            wrong.append(f"resume: exit code {resumed.code}: {resumed.stderr[-2000:]}")
        else:
            wrong += reference.differences(run)
    return first.code, first.said.replace(str(run), "run") if first.code else None, wrong
