"""Write the README's outputs and tables: from commands run here and from result files.

Whatever lies between `<!-- NAME -->` and `<!-- /NAME -->` is replaced. Commands run in a temporary
folder beside which the real data and models lie, so that no path of this machine gets in.

    python scripts/update_readme.py [NAME …]
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared"

MODELS = ("bert", "roberta", "minilm")
RUN = " \\\n    ".join([
    "clsight run ../shared/data/rotten_tomatoes/unseen.parquet --text text --label label -o run",
    *(f"--model {name}=../shared/models/{name}-rt" for name in MODELS),
])
SESSIONS = {
    "demo": ["clsight demo"],
    "real": [RUN, "clsight query run examples -p form=not -p model=roberta -p limit=3"],
    "catalogue": ["clsight query run"],
}


def session(commands, folder):
    """The commands as typed, and what they print on stdout."""
    parts = []
    for command in commands:
        answer = subprocess.run(
            command, shell=True, cwd=folder, check=True, text=True, stdout=subprocess.PIPE,
            env={"PATH": f"{ROOT}/.venv/bin:/usr/bin:/bin", "HOME": str(folder)},
        )
        lines = [line.rstrip() for line in answer.stdout.splitlines()]
        parts.append(f"$ {command}\n" + "\n".join(lines).strip("\n"))
    return "```console\n" + "\n\n".join(parts) + "\n```"


def benchmark():
    """The table of measured ratios, with the hardware that its result files name."""
    question = json.loads((RESULTS / "question.json").read_text())
    memory = json.loads((RESULTS / "memory.json").read_text())
    low, high = question["ratio_range"]
    asked = sum(medians(question, "question_s"))
    return "\n".join([
        "| what | measured |",
        "|---|---|",
        f"| {question['documents']:,} reviews x {len(question['models'])} models, one at a time "
        f"as in the question | {asked:.0f} s |",
        f"| `clsight run` on the same, process start to tables "
        f"| {medians(question, 'clsight_s')[0]:.1f} s |",
        f"| ratio, median of {len(question['rounds'])} interleaved rounds "
        f"| {question['ratio_median']:.1f} ({low:.1f} to {high:.1f}) |",
        f"| peak memory, {memory['times']} times the documents "
        f"| {memory['ratio']:.2f} times ({memory['peak_mib'][0]:.0f} to "
        f"{memory['peak_mib'][1]:.0f} MiB) |",
        "",
        f"{question['cpu']}, {question['threads']} threads, torch "
        f"{question['versions']['torch']}, transformers {question['versions']['transformers']}; "
        "written from `benchmarks/results/` by `scripts/update_readme.py`.",
    ])


def medians(result, key):
    """Medians over rounds: one value, or one per model."""
    rounds = [one[key] if isinstance(one[key], dict) else {"": one[key]}
              for one in result["rounds"]]
    return [statistics.median(one[name] for one in rounds) for name in rounds[0]]


def main():
    wanted = sys.argv[1:] or [*SESSIONS, "benchmark"]
    text = README.read_text()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "work")
        folder.mkdir()
        Path(parent, "shared").symlink_to(SHARED)
        for name in wanted:
            new = benchmark() if name == "benchmark" else session(SESSIONS[name], folder)
            block = f"<!-- {name} -->\n{new}\n<!-- /{name} -->"
            text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text,
                          flags=re.DOTALL)
    README.write_text(text)


if __name__ == "__main__":
    main()
