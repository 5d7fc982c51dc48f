"""A finished run that is damaged: does `verify` name the file, and does a repair mend it?

Bytes are flipped one at a time and put back. Then shards of every kind are flipped, cut, lost,
swapped and added to, each in a copy of the run, which is repaired and compared with the run.
"""

import random
import shutil
import subprocess
import time
from contextlib import contextmanager

from runs import Finished

from clsight import verify
from clsight.errors import ClsightError

MADE = "attention", "heads", "agreement", "scores", "sums"


@contextmanager
def flipped(path, place, by):
    """A file with one byte changed."""
    def flip():
        with path.open("rb+") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ by]))

    flip()
    try:
        yield
    finally:
        flip()


def drawn(paths, n, seed):
    """(path, place, by what to change it), uniform over all bytes of the files."""
    draw = random.Random(seed)
    sizes = [path.stat().st_size for path in paths]
    for path in draw.choices(paths, sizes, k=n):
        yield path, draw.randrange(path.stat().st_size), draw.randrange(1, 256)


def named(run):
    """Files that `verify` names; a plan that cannot be read is named by the error."""
    try:
        return {problem.file for problem in verify.verify(run)}
    except ClsightError as error:
        return {str(error)}


def found(run, paths, n, seed):
    """How many of `n` flipped bytes are named by their file, and how often others are as well."""
    counts = {"bytes": sum(path.stat().st_size for path in paths), "flips": n, "named": 0,
              "others_named": 0, "not_named": []}
    for path, place, by in drawn(paths, n, seed):
        file = path.relative_to(run).as_posix()
        with flipped(path, place, by):
            files = named(run)
        if file in files:
            counts["named"] += 1
            counts["others_named"] += len(files) > 1
        else:
            counts["not_named"].append({"file": file, "place": place, "by": by})
    return counts


def damages(run, model):
    """(file, what is done to it, the function that does it to a copy) for every kind of file."""
    shards = ["documents/00001.parquet", *(f"{model}/{made}/00001.parquet" for made in MADE)]
    others = [f"{model}/head_weights.parquet", "plan.json", "log/plan.json", "clsight.duckdb"]
    for file in [*shards, *others]:
        size = (run / file).stat().st_size
        yield file, "flipped", lambda path, size=size: flip_for_good(path, size // 3)
        yield file, "cut", lambda path, size=size: cut(path, size // 2)
        yield file, "empty", lambda path: cut(path, 0)
        yield file, "lost", lambda path: path.unlink()
    for file in shards:
        yield file, "swapped", lambda path: shutil.copy(path.with_name("00000.parquet"), path)
        extra = file.replace("00001", "00099")
        yield extra, "foreign", lambda path: shutil.copy(path.with_name("00000.parquet"), path)


def flip_for_good(path, place):
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def cut(path, size):
    """Keep the beginning."""
    with path.open("rb+") as file:
        file.truncate(size)


def mended(run, reference, copy, file, damage):
    """Whether a damage to a copy of a run is named, and what is wrong after its repair."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    damage(copy / file)
    files = named(copy)
    try:
        left = [str(problem) for problem in verify.repair(copy)]
    except ClsightError as error:
        left = [f"repair: {error}"]
    aside = f"{verify.ASIDE} does not belong"
    left += [line for line in reference.differences(copy) if not line.endswith(aside)]
    return file in files, left


def flips(case, folder, n, seed, say):
    """Damages to a run; what was named and mended, for the result file."""
    run = folder / "run"
    subprocess.run(case.command(run), check=True, capture_output=True)
    reference, begun = Finished.read(run), time.monotonic()
    assert not named(run)
    kinds = {
        "shards": (sorted(run.rglob("*.parquet")), n),
        "plan": ([run / "plan.json", run / "log" / "plan.json"], max(1, n // 10)),
        "database": ([run / "clsight.duckdb"], max(1, n // 10)),
    }
    result = {kind: found(run, *given, seed) for kind, given in kinds.items()}
    result["seconds_each"] = (time.monotonic() - begun) / sum(many for _, many in kinds.values())
    say(str(result))
    tried, failures = {}, []
    for file, what, damage in damages(run, next(iter(case.models))):
        is_named, left = mended(run, reference, folder / "copy", file, damage)
        counts = tried.setdefault(what, {"tried": 0, "named": 0, "mended": 0})
        for name, true in (("tried", True), ("named", is_named), ("mended", not left)):
            counts[name] += true
        if not is_named or left:
            failures.append({"file": file, "damage": what, "named": is_named, "left": left})
            say(str(failures[-1]))
    return {**result, "repairs": tried, "failures": failures}
