"""Does a run survive the night? Kills, faults, full disks, flipped bytes, and a long run.

Each part adds its own figures to the result file:

    python benchmarks/survival kills [--trials 200] [--case CASE …] [-o RESULT.json]
    python benchmarks/survival faults [--every 1] [--kind KIND …] [-o RESULT.json]
    python benchmarks/survival disks [-o RESULT.json]
    python benchmarks/survival flips [--flips 1000] [-o RESULT.json]
    python benchmarks/survival soak [--documents 300000] [-o RESULT.json]

What is not as it should be is printed, and its folder kept, below --folder.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import disks
import faults
import flips
import kills
import soak
from result_file import finish, hardware
from runs import generated, real

SMALL = {"shard_size": 50, "options": ("--min-documents", "20")}


def say(line):
    print(line, file=sys.stderr, flush=True)


def measure_kills(arguments, folder, save):
    """As many trials of each case; figures are saved on the way, for it takes an hour or two."""
    # minilm-rt would take 17 of 28 s, and go through the same code.
    cases = {"generated": generated(folder, 1000), "real": real(("bert-rt", "roberta-rt"))}
    chosen = arguments.case or list(cases)
    for name in chosen:
        trials = arguments.trials // len(chosen)
        for result in kills.kills(cases[name], folder, trials, arguments.seed, say):
            save({name: result})


def measure_faults(arguments, folder, save):
    case = generated(folder, 60, shard_size=30, options=("--min-documents", "10"))
    save(faults.faults(case, folder, arguments.every, arguments.kind or faults.DISTURBED, say))


def measure_disks(_, folder, save):
    save(disks.disks(generated(folder, 1000), folder, say))


def measure_flips(arguments, folder, save):
    case = generated(folder, 120, **SMALL)
    save(flips.flips(case, folder, arguments.flips, arguments.seed, say))


def measure_soak(arguments, folder, save):
    save(soak.soak(folder, arguments.documents, arguments.seed, say))


PARTS = {"kills": measure_kills, "faults": measure_faults, "disks": measure_disks,
         "flips": measure_flips, "soak": measure_soak}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        part = parts.add_parser(name)
        part.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()),
                          help="where runs are made, in a folder of their own")
        part.add_argument("--seed", type=int, default=1)
        part.add_argument("-o", "--output", type=Path, help="result file; the part is added to it")
    parts.choices["kills"].add_argument("--trials", type=int, default=200)
    parts.choices["kills"].add_argument("--case", action="append", choices=("generated", "real"))
    parts.choices["faults"].add_argument("--every", type=int, default=1)
    parts.choices["faults"].add_argument("--kind", action="append", choices=faults.DISTURBED)
    parts.choices["flips"].add_argument("--flips", type=int, default=1000)
    parts.choices["soak"].add_argument("--documents", type=int, default=300_000)
    return parser.parse_args()


def main():
    arguments, begun = parsed(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"{arguments.part}-", dir=arguments.folder.resolve()))
    say(f"runs are made in {folder}")

    def save(figures):
        figures |= {"seconds": round(time.monotonic() - begun), **hardware()}
        result = {"benchmark": "survival"}
        if arguments.output and arguments.output.exists():
            result = json.loads(arguments.output.read_text())
        finish(result | {arguments.part: added(result.get(arguments.part, {}), figures)},
               arguments.output)

    PARTS[arguments.part](arguments, folder, save)


def added(before, figures):
    """The figures beside earlier ones of other kinds."""
    return before | {name: before[name] | value if name == "kinds" and name in before else value
                     for name, value in figures.items()}


if __name__ == "__main__":
    main()
