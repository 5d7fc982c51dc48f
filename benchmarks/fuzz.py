"""Coverage-guided fuzzing: `python benchmarks/fuzz.py --seconds 60` (needs `pip install atheris`).

Every target of tests/fuzz/targets.py runs that long in a process of its own, from what is kept in
tests/fuzz/corpus and the targets' own seeds; a crash is kept in --crashes, and the target goes on.
Prints executions, edges of clsight's own code that were covered, and crashes as JSON. With --keep,
what covers more than the seeds do replaces the corpus, as few and as small files as do it.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
CORPUS = TESTS / "fuzz" / "corpus"
LONGEST, FILES, BYTES = 4096, 30, 45_000
"""Most bytes of an input; most files and bytes that are kept of a target."""
CRASHES = 20
"""After as many crashes a target is given up."""
MEBIBYTES = 4096

sys.path += [str(TESTS), str(TESTS / "fuzz")]


def fuzz(name, arguments):
    """Be one of the processes: run a target until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["clsight", "targets"]):
        import targets
    run = os.environ.get("FUZZ_RUN")
    target = targets.Question(run) if name == "query" else targets.TARGETS[name]

    def changed(data, max_size, seed):
        """Mostly a byte for a byte: what moves the places of a Parquet file breaks it at once."""
        chance = random.Random(seed)
        if chance.random() < 0.2 or not data:
            return atheris.Mutate(data, max_size)
        data = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 127, 128, 255,
                                                               chance.randrange(256)])
        return bytes(data)

    mutator = {"custom_mutator": changed} if name == "parquet" else {}
    # The first argument is what libFuzzer calls itself by, in a shell, when it merges.
    itself = f"'{sys.executable}' '{__file__}' --process {name}"
    atheris.Setup([itself, *arguments], target, **mutator)
    atheris.Fuzz()


def explore(name, seconds, crashes, work):
    """Fuzz a target for some time, on after each crash; returns what is to be told of it."""
    corpus, until, logs, found = work / name, time.monotonic() + seconds, [], 0
    corpus.mkdir()
    _write_seeds(name, corpus)
    while (left := until - time.monotonic()) > 1 and found < CRASHES:
        log = _process(name, work, f"-max_total_time={int(left)}", f"-artifact_prefix={crashes}/",
                       "-print_final_stats=1", *_tokens(name, work), str(corpus), *_kept(name))
        logs.append(log)
        if "Test unit written to" not in log:
            break
        found += 1
    log = "\n".join(logs)
    return {
        "executions": sum(map(int, re.findall(r"stat::number_of_executed_units: (\d+)", log))),
        "edges": max(map(int, re.findall(r"cov: (\d+)", log)), default=0),
        "crashes": sorted({*re.findall(r"=== Uncaught Python exception: ===\n(.*)", log),
                           *re.findall(r"ERROR: libFuzzer: (?!fuzz target exited)(.*)", log)}),
        "files": re.findall(r"Test unit written to (.*)", log),
    }


def keep(name, work):
    """Replace the corpus of a target by the smallest set that covers as much."""
    merged, kept = work / f"{name}-merged", CORPUS / name
    merged.mkdir()
    _process(name, work, "-merge=1", "-use_counters=0", str(merged), str(work / name), *_kept(name))
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    size = 0
    for path in sorted(merged.iterdir(), key=lambda path: path.stat().st_size)[:FILES]:
        size += path.stat().st_size
        if size <= BYTES:
            shutil.copy(path, kept)
    return len(list(kept.iterdir()))


def _process(name, work, *arguments):
    common = [f"-max_len={LONGEST}", f"-rss_limit_mb={MEBIBYTES}", "-timeout=30"]
    command = [sys.executable, __file__, "--process", name, *common, *arguments]
    run = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace",
                         env=os.environ | {"FUZZ_RUN": str(work / "run"), "TMPDIR": str(work)})
    return run.stdout + run.stderr


def _write_seeds(name, folder):
    import targets

    for i, data in enumerate(targets.seeds()[name]):
        (folder / f"seed-{i}").write_bytes(data)


def _tokens(name, work):
    import targets

    if name not in targets.TOKENS:
        return []
    path = work / f"{name}.dict"
    quoted = ("".join(f"\\x{byte:02x}" for byte in token.encode())
              for token in targets.TOKENS[name])
    path.write_text("".join(f'"{token}"\n' for token in quoted))
    return [f"-dict={path}"]


def _kept(name):
    return [str(CORPUS / name)] if (CORPUS / name).is_dir() else []


def _small_run(work):
    """A run of the demo's models, for questions."""
    from clsight import demo, pipeline
    from conftest import demo_models

    reviews = demo.write_reviews(work / "reviews", 200, 5)
    pipeline.run(str(reviews), text="text", label="label", models=demo_models(), dtype="float32",
                 output=work / "run", options=pipeline.Options(min_documents=10))


def main():
    """Fuzz the targets one after the other, and print what came of it."""
    import targets

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    names = [*targets.TARGETS, "query"]
    parser.add_argument("--target", action="append", choices=names, help="by default all")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--keep", action="store_true", help="renew tests/fuzz/corpus")
    arguments = parser.parse_args()
    chosen, result = arguments.target or names, {}
    crashes = arguments.crashes.resolve()
    crashes.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        work = Path(folder)
        if "query" in chosen:
            _small_run(work)
        for name in chosen:
            result[name] = explore(name, arguments.seconds, crashes, work)
            if arguments.keep:
                result[name]["kept"] = keep(name, work)
    print(json.dumps(result, indent=2))
    return any(found["crashes"] for found in result.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
