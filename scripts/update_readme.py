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
    "compare": [
        "clsight run ../shared/data/rotten_tomatoes/unseen.parquet --text text --label label \\\n"
        "    --model bert=../shared/models/bert-rt --scores all -o all > summary.txt",
        'clsight query all "SELECT score, margin_explained, \\\n'
        "    max(rank_correlation) FILTER (other = 'classifier') AS ranks_like_classifier, \\\n"
        "    max(rank_correlation) FILTER (other = 'contribution') AS ranks_like_contribution \\\n"
        'FROM compare_scores GROUP BY score, margin_explained ORDER BY score::score_name"',
    ],
    "catalogue": ["clsight query run"],
}
SCORES = ("uniform", "norm", "contribution", "rollout", "relevance", "conservative", "deeplift")


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
        measured_on(question),
    ])


def extraction():
    """Documents a second of every system, and how many times faster clsight in bfloat16 is."""
    cases = json.loads((RESULTS / "extraction.json").read_text())
    return "\n\n".join([
        "Documents a second; in brackets how many times as fast `clsight bfloat16` is, the median "
        "of rounds in which all systems take turns. Only the question's function, `attentions` "
        "and clsight return attention.",
        extraction_table(cases["cases"], rates=True),
        measured_on(cases | next(iter(cases["cases"].values()))),
        elsewhere(),
    ])


def elsewhere():
    """The ratios alone on a processor of another kind."""
    cases = json.loads((RESULTS / "extraction-avx512.json").read_text())
    first = next(iter(cases["cases"].values()))
    return "\n\n".join([
        f"On a processor without AMX ({first['cpu']}), and before activations' memory was kept:",
        extraction_table(cases["cases"], rates=False),
    ])


def extraction_table(cases, rates):
    """A row per system; how many times as fast clsight is, with or without documents a second."""
    names = dict.fromkeys(name for case in cases.values() for name in case["documents_per_second"])
    rows = []
    for name in names:
        cells = []
        for case in cases.values():
            rate = case["documents_per_second"].get(name)
            ratio = case["ratio"]["clsight bfloat16"].get(name)
            shown = f"{rate[0]:,.{0 if rate[0] >= 50 else 1}f}" if rate and rates else ""
            times = f"{ratio[0]:.2f}" if ratio else ""
            cells.append(f"{shown} ({times})" if shown and times else shown or times or "–")
        rows.append([name, *cells])
    rows.append(["useful arithmetic / matrix peak, bfloat16", *(
        f"{case['share_of_peak']['clsight bfloat16'][0]:.0%}" for case in cases.values())])
    rows.append(["the same, float32", *(
        f"{case['share_of_peak']['clsight float32'][0]:.0%}" for case in cases.values())])
    return table(["system", *cases], rows)


def queries():
    """Seconds of each named query and relation by size, and its peak memory."""
    result = json.loads((RESULTS / "queries.json").read_text())
    sizes = result["word_rows"]
    largest = sizes[max(sizes, key=int)]
    rows = []
    for name, one in largest.items():
        if one.get("kind") in ("query", "relation"):
            seconds = [sizes[size][name]["seconds"] for size in sizes]
            asked, _, how = name.replace(" (", ", ").rstrip(")").partition(", ")
            rows.append([f"`{asked}`{', ' if how else ''}{how}",
                         *(f"{took:.2g}" for took in seconds),
                         f"{one['peak_mib']:,.0f}", f"{one['target_s']}"])
    return "\n\n".join([
        f"Seconds and peak MiB (limit {result['memory_limit']}, with the disk) in a process of its "
        "own each, for runs of two models and so many word rows:",
        table(["query", *(f"{int(size):,}" for size in sizes), "MiB", "target, s"], rows),
        measured_on(result | result["hardware"]),
    ])


def kernels():
    """Scoring beside a copy and NumPy; permutations and resamples of words."""
    result = json.loads((RESULTS / "kernels.json").read_text())
    scoring = result["parts"]["scores"]
    copy, numpy = scoring["share_of_copy"], scoring["times_numpy"]
    rows = [[
        f"scores of {scoring['words'] / 1e6:.1f} M words, {scoring['weightings']} weightings of "
        f"heads in one pass over {scoring['row_mib']:.0f} MiB of rows",
        f"{scoring['seconds']['clsight'] * 1000:.0f} ms",
        f"{numpy[0]:.0f} ({numpy[1]:.0f} to {numpy[2]:.0f})",
        f"{copy[0]:.0%} ({copy[1]:.0%} to {copy[2]:.0%}) of a copy's speed",
    ]]
    for name, part in result["parts"].items():
        if "replicates" in part:
            what, _, scores = name.partition("-")
            rows.append([
                f"{part['replicates']:,} {'resamples' if what == 'bootstrap' else what} of "
                f"{part['pairs'] / 1e6:.1f} M (document, word) pairs, scores: {scores}",
                f"{part['seconds']:.0f} s", f"{part['times_numpy']:.0f}",
                f"{part['peak_mib']:,.0f} MiB, the pairs' own {part['input_mib']:,.0f} included",
            ])
    return "\n\n".join([
        table(["kernel", "time", "times as fast as NumPy", "limit"], rows),
        measured_on(result | result["hardware"]),
    ])


def calibration():
    """False alarms on real runs whose errors were permuted, confounds, and power."""
    result = json.loads((RESULTS / "calibration.json").read_text())
    parts = result["parts"]
    kinds = ("own, more", "own, less", "both, more", "both, less", "over", "under")
    false = table(
        ["run, model, score", *kinds, "own p < 0.05", "larger p < 0.05", "Welch", "Mann-Whitney",
         "log-odds"],
        [[name, *(f"{one['permuted'][kind]:.1%}" for kind in kinds),
          *(f"{one['permuted'][kind]:.1%}" for kind in ("own p < 0.05", "larger p < 0.05")),
          *(f"{one['permuted'][kind]:.1f} ({one['real'][kind]})"
            for kind in ("welch", "mann-whitney", "log-odds"))]
         for name, one in parts["calibration"].items()])
    sizes = list(next(iter(parts["confounds"].values())))
    rounds = next(iter(parts["calibration"].values()))["rounds"]
    confounds = table(
        ["masses that depend on", *(f"{int(size):,} documents" for size in sizes)],
        [[kind, *(f"{one[size]['q more']:.0%}, {one[size]['q less']:.0%}" for size in sizes)]
         for kind, one in parts["confounds"].items()])
    return "\n\n".join([
        f"Errors of real runs permuted {rounds} times within the strata of a reference: share of "
        "runs in which any word has q < 0.05 (own: by that reference; both: by the larger p), or "
        "passes the whole criterion but for lift (over, under); share of words with p < 0.05; "
        "words that naive tests name on average of 10 permutations (on the real errors).",
        false,
        "Masses that know nothing of words: share of 40 runs in which any word has q < 0.05 "
        "against both references, more and less.",
        confounds,
        models_table(parts["models"], rounds),
        tails_table(parts["tails"]),
        power_table(parts["power"]),
        stage(),
        measured_on(result | result["hardware"]),
    ])


def models_table(models, rounds):
    """What tests between models find where these change places at random."""
    caption = (f"Two models of a run that change places in each document at random, {rounds} "
               "times: share of runs with any q < 0.05, share of words with p < 0.05.")
    tests = {"heterogeneity": "`heterogeneity`", "difference": "`p_difference`",
             "paired": "`p_paired`"}
    return f"{caption}\n\n" + table(
        ["run, models, score", *tests.values()],
        [[name, *(f"{one[test]['runs']:.1%}, {one[test]['words']:.1%}" for test in tests)]
         for name, one in models.items()])


def tails_table(tails):
    """How p from moments compares with p from permutations."""
    rows = [[f"{decade.replace('-0', '-')} to {10 * float(decade):g}", f"{one['p']:,}",
             "{:.2f} ({:.2f} to {:.2f})".format(*one["ratio"])]
            for decade, one in sorted(tails.items(), key=lambda item: -float(item[0]))
            if float(decade) < 1]
    caption = ("p from three moments / p from up to 100,000 permutations, where the former is "
               "used: median (5 % and 95 % of the words; the latter is itself off by 14 %).")
    return f"{caption}\n\n" + table(["p", "number", "ratio"], rows)


def power_table(power):
    """Recall and precision by kind, documents, frequency and strength."""
    cases = [name.split(", ") for name in power]
    sizes = list(dict.fromkeys(n for _, n, _, _ in cases))
    rows = []
    for kind, frequency, times in dict.fromkeys((k, f, t) for k, _, f, t in cases):
        row = [kind, f"{float(frequency):.0%}", times]
        for n in sizes:
            one = power[f"{kind}, {n}, {frequency}, {times}"]
            precision = "–" if one["precision"] is None else f"{one['precision']:.2f}"
            row.append(f"{one['recall']:.2f} / {precision}")
        rows.append(row)
    runs = {n: one["rounds"] for (_, n, _, _), one in zip(cases, power.values(), strict=True)}
    caption = ("Two planted shortcuts among 200 units: recall / precision of `over_attended` (but "
               f"for lift) in {', '.join(str(runs[n]) for n in sizes)} runs.")
    return f"{caption}\n\n" + table(
        ["planted", "active in documents", "odds of an error, times",
         *(f"{int(n):,} documents" for n in sizes)], rows)


def stage():
    """Time and memory of the statistics stage."""
    result = json.loads((RESULTS / "stage.json").read_text())
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["parts"].items())
    return (f"The whole statistics stage for {result['documents']:,} generated documents, "
            f"{result['models']} models of four scores and {result['words']:,} tested words "
            f"({result['pairs']:,} pairs of word and document): {result['seconds']:.0f} s "
            f"({parts}), {result['peak_mib'] / 1024:.1f} GiB at the peak; on "
            f"{result['hardware']['cpu']}, {result['hardware']['threads']} threads.")


def whole():
    """The share of a run that is its forward loop."""
    result = json.loads((RESULTS / "whole.json").read_text())
    shares = [f"{share:.0%} ({low:.0%} to {high:.0%}) for {model}, {one['documents']:,} reviews"
              for model, one in result["models"].items() for share, low, high in [one["share"]]]
    return ("Forward loop / whole `clsight run` from texts to SQL, start-up left out: "
            f"{'; '.join(shares)}.")


def pages():
    """How soon a report shows something, what a server bears, and how fast tables are handed on."""
    report, serve, export = (json.loads((RESULTS / f"{name}.json").read_text())
                             for name in ("report", "serve", "export"))
    first, least, most = report["first_chart_s"]
    during = serve["memory_mib"]["during"]
    rates = ", ".join(f"{names} {one['rows_per_second'] / 1e3:,.0f}"
                      for names, one in export["targets"].items())
    return "\n".join([table(["what", "measured"], [
        [f"report of {report['documents']:,} documents, written in {report['seconds']:.0f} s",
         f"{report['bytes'] / 1e6:.1f} MB; first chart in Chromium after {first:.1f} s "
         f"({least:.1f} to {most:.1f})"],
        [f"`serve`: {serve['requests']:,} requests by {serve['clients']} clients at once",
         f"{serve['errors']} errors; {serve['requests_per_second']:,.0f} a second, p50 "
         f"{serve['latency']['p50_ms']:,.0f} ms, p99 {serve['latency']['p99_ms']:,.0f} ms; memory "
         f"{min(during):,} to {max(during):,} MiB"],
        [f"`serve`: {serve['fuzz']['requests']:,} requests made up from its own description",
         f"{serve['fuzz']['server_errors']} answered with 500 or above"],
        [f"`export` of {export['rows']:,} words, twice, equal to the source",
         f"thousand rows a second: {rates}"],
    ]), "", measured_on(report["hardware"] | {"versions": report["versions"]})])


def executors():
    """What executors cost, what became of disturbed runs, and of a night with many workers."""
    measured, simulation = (json.loads((RESULTS / f"{name}.json").read_text())
                            for name in ("executors", "simulation"))
    overhead, disturbed = measured["overhead"], measured["disturbed"]
    cost = [
        [NAMES_OF_EXECUTORS[name], percents([ratio - 1 for ratio in one["over_bare"]]),
         percents(one["counted_overhead"]), f"{one['empty_ms_per_shard'][0]:.2g} ms",
         f"{one['first_commit_s']:.1f} s"]
        for name, one in overhead["systems"].items() if name != "bare"]
    bad = [name for name, one in disturbed["trials"].items()
           if one["lost"] or one["doubled"] or one["different"]]
    nights = [
        [f"`{name}`, {one['workers']} workers", f"{one['shards']:,}", f"{one['deaths']}",
         f"{one['lost']} / {one['committed_twice']}",
         f"{one['ideal_s']:.0f} s / {one['wall_s']:.0f} s",
         f"{one['recovery_s'][0]:.1f} s ({one['recovery_s'][1]:.1f} at most)",
         f"{one['tail_s']:.1f} s",
         f"{one['driver_ms_per_shard']:.2g} ms", ray_head(one)]
        for name, one in simulation["systems"].items()]
    return "\n".join([
        f"{overhead['documents']:,} reviews in {overhead['shards']} shards, minilm-rt in "
        f"{overhead['dtype']}, {overhead['rounds']} rounds in turns: median, least and most.", "",
        table(["executor", "whole runs: seconds over those of a bare loop",
               "counted: idle device, and cores taken from it", "a shard with nothing to do",
               "first shard after"], cost), "",
        "Whole runs on a Ray cluster of several nodes in one machine "
        f"({disturbed['shards']} shards for each of {disturbed['models']} models; "
        f"{', '.join(disturbed['trials'])}): "
        f"{len(disturbed['trials']) - len(bad)} of {len(disturbed['trials'])} have the tables of "
        "one process, row for row, with nothing lost and nothing doubled.", "",
        "Simulated nights: the executors are real, their workers sleep as long as shards took, "
        f"{simulation['mean_shard_s']} s on average, and die at one shard in 2,000.", "",
        table(["executor", "shards", "workers that died", "shards lost / doubled",
               "sleep by worker / wall", "another worker ready after a death",
               "last shard after it was given", "driver, a shard",
               "Ray's own processes, a shard; memory of its head"],
              nights), "", measured_on(measured)])


def ray_head(night):
    """What Ray's own processes take."""
    if "gcs_mib" not in night:
        return ""
    return f"{night['ray_ms_per_shard']:.2g} ms; {night['gcs_mib']} MiB"


NAMES_OF_EXECUTORS = {"local": "`local`", "local process": "`local --workers`, one process",
                      "ray": "`ray`, one actor"}


def percents(shares):
    """Median, least and most of shares."""
    middle, least, most = (f"{100 * share:.2g} %" for share in shares)
    return f"{middle} ({least} to {most})"


NIGHT = 10 * 3600


def lasting(seconds):
    """Seconds as minutes, or as hours."""
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def sized(n_bytes):
    """Bytes as GB, or as TB."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes < 1e12 else f"{n_bytes / 1e12:,.1f} TB"


def sizing():
    """What a document takes, and so many of them."""
    result, stage, simulation = (json.loads((RESULTS / f"{name}.json").read_text())
                                 for name in ("sizing", "stage", "simulation"))
    kinds = ("attention", "scores", "documents")
    rows = []
    for model, cases in result["cases"].items():
        last, all_ = (cases[layers] for layers in ("last", "all"))
        rates = [one["documents_per_second"] for one in (last, all_)]
        sizes = [one["bytes_per_document"] for one in (last, all_)]
        rows.append([model, *(f"{rate:,.0f} ({low:,.0f} to {high:,.0f})"
                              for rate, low, high in rates),
                     f"{NIGHT * rates[0][0] / 1e6:.1f} million",
                     f"{sizes[0]['attention']:,.0f}", f"{sizes[1]['attention']:,.0f}",
                     *(f"{sizes[0][kind]:,.0f}" for kind in kinds[1:])])
    case = result["cases"]["bert-base"]
    rate = case["last"]["documents_per_second"][0]
    sizes = [case[layers]["bytes_per_document"] for layers in ("last", "all")]
    rest = sum(size for kind, size in sizes[0].items() if kind not in ("attention", "sums"))
    rest += sum(stage["bytes_per_document"].values()) / stage["models"]
    per_document = stage["seconds"] / stage["documents"] / stage["models"]
    driver = simulation["systems"]["local"]["driver_ms_per_shard"]
    at = [
        [f"10^{power}", lasting(10**power / rate), f"{10**power / rate / NIGHT:,.1f}",
         *(sized(10**power * size) for size in (*(one["attention"] for one in sizes), rest)),
         lasting(10**power * per_document) if power < 10 else "not in one run",
         f"{-(-10**power // 4096):,}", f"{10**power / 4096 * driver / 1000:,.1f} s"]
        for power in (6, 8, 10)]
    return "\n".join([
        f"The {case['last']['documents']:,} reviews (28 pieces on average), a model by itself "
        f"(bert-base with random weights), {case['last']['dtype']}, median of "
        f"{result['rounds']} runs (least to most); bytes are those of the files.", "",
        table(["model", "documents a second, last layer", "all layers",
               "documents in a night of ten hours", "bytes a document: attention, last layer",
               "all layers", *kinds[1:]], rows), "",
        "What bert-base takes for so many reviews, by those rates, and by those of the statistics "
        f"stage ({stage['documents']:,} documents) and of the simulation above:", "",
        table(["documents", "extraction and scores, one such machine", "machines for one night",
               "attention, last layer", "all layers", "all else", "statistics, one machine",
               "shards of 4,096", "driver's work"], at), "",
        measured_on(result)])


def survival():
    """What became of runs that were disturbed."""
    result = json.loads((RESULTS / "survival.json").read_text())
    parts = {"kills": killed, "faults": faulty, "disks": full, "flips": damaged, "soak": soaked}
    rows = [row for part, told in parts.items() if part in result for row in told(result[part])]
    cpus = ", ".join({result[part]["cpu"]: None for part in parts if part in result})
    return "\n".join([table(["what was done", "what came of it"], rows), "", measured_on(
        result["soak"] | {"cpu": cpus, "versions": result["versions"]})])


def killed(result):
    for name, case in result.items():
        if isinstance(case, dict) and "trials" in case:
            at = ", ".join(f"{stage} {n}" for stage, n in case["killed_at"].items())
            yield [f"{case['trials']} SIGKILLs at random moments of runs of {NAMES[name]} (at {at})"
                   ", each resumed",
                   f"{case['unequal']} final tables unlike those of an undisturbed run, "
                   f"{case['lost']} documents lost, {case['doubled']} doubled; "
                   f"{case['made_again']} of {case['shards_at_kill']} shards extracted again; "
                   f"{case['half_written_seen']} half-written files among {case['files_read']:,} "
                   "read meanwhile"]


def faulty(result):
    n_changes = sum(result["changes"].values())
    for what, case in result["kinds"].items():
        exits = ", ".join(f"{name} {n}" for name, n in case["exits"].items())
        yield [f"{what} at {case['trials']} of the {n_changes:,} writes, syncs, renames and other "
               "changes of a run in turn",
               f"{len(case['failures'])} runs neither complete nor resumable to the same tables "
               f"(exits: {exits})"]


def full(result):
    if "disks" in result:
        exits = [disk["exit"] for disk in result["disks"]]
        wrong = sum(bool(disk["wrong"]) for disk in result["disks"])
        yield [f"{len(exits)} disks too small or just large enough, that get more room",
               f"{exits.count(1)} stopped with a sentence, {exits.count(0)} complete; {wrong} not "
               "complete afterwards"]


def damaged(result):
    for kind in ("shards", "plan", "database"):
        case = result[kind]
        yield [f"{case['flips']:,} flipped bytes in {kind}, one at a time",
               f"`verify` names the file of {case['named']:,}"]
    tried, mended = (sum(case[key] for case in result["repairs"].values())
                     for key in ("tried", "mended"))
    yield [f"{tried} damages to every kind of file: flipped, cut, empty, lost, swapped, foreign",
           f"`verify --repair` mends {mended}"]


def soaked(result):
    whole = [one for one in result["sessions"] if "slope_mib_a_minute" in one]
    grown = [one["last_tenth_over_second"] for one in whole]
    rates = result["documents_a_second_by_fifth"]
    right = "right" if result["counts_are_right"] else "**wrong**"
    yield [f"{result['documents']:,} documents with bert-rt, killed "
           f"{len(result['sessions']) - 1} times",
           f"counts {right}; {rates[0]:,.0f} documents a second in the first fifth, "
           f"{rates[-1]:,.0f} in the last; memory at the end of a session's extraction "
           f"{min(grown):.2f} to {max(grown):.2f} times that near its beginning, "
           f"and {max(one['peak_mib'] for one in result['sessions']):,.0f} MiB at most"]


NAMES = {"generated": "the demo", "real": "the real reviews"}


def measured_on(result):
    """The hardware and versions that a result file names."""
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return (f"{result['cpu']}, {threads}, torch {result['versions']['torch']}, "
            f"transformers {result['versions']['transformers']}; "
            "written from `benchmarks/results/` by `scripts/update_readme.py`.")


def medians(result, key):
    """Medians over rounds: one value, or one per model."""
    rounds = [one[key] if isinstance(one[key], dict) else {"": one[key]}
              for one in result["rounds"]]
    return [statistics.median(one[name] for one in rounds) for name in rounds[0]]


def families():
    """How exact each score is, what it costs, and what is refused, by family."""
    result = json.loads((RESULTS / "scores.json").read_text())
    refused = [f"`{kind}` is refused: {reason}." for kind, reason in result["refused"].items()]
    return "\n\n".join([
        "How far scores of pieces are from transformers' eager model in float64 with autograd, in "
        "float32 / bfloat16. The largest deviation counts, as a share of the document's largest "
        "value where that is above 1:",
        deviations(result),
        under_deviations(result),
        "What each score costs alone, in forward passes of transformers' own model that returns "
        "no attention (`plain`: the attention function that it has):",
        costs(result),
        under_costs(result),
        *refused,
        measured_on(result),
    ])


def deviations(result):
    """One row per real classifier and per family."""
    def cell(exact, half):
        return f"{exact:.0e}".replace("e-0", "e-") + f" / {half:.1g}"

    rows = []
    for name, row in (result["real"] | result["families"]).items():
        exact, half = (row["deviation"][dtype] for dtype in ("float32", "bfloat16"))
        cells = [cell(exact[score], half[score]) if score in exact else "–" for score in SCORES]
        rows.append([with_pooling(name), row["path"], *cells])
    return table(["model", "path", *(f"`{score}`" for score in SCORES)], rows)


def under_deviations(result):
    """What the first table's rows are, and why cells are empty."""
    notes = ["Families: small models with random weights that are large on purpose, which makes "
             "their bfloat16 pessimistic."]
    if real := result["real"]:
        reviews = next(iter(real.values()))["reviews"]
        notes.append(f"{', '.join(real)}: trained classifiers, {reviews} reviews.")
    if same := result.get("agreement"):
        notes.append(f"In bfloat16 {same['model']} predicts what it does in float32 for "
                     f"{same['share']:.2%} of {same['reviews']:,} reviews.")
    for name, row in result["families"].items():
        if (reference := row["deviation"]["reference"]) != "float64":
            notes.append(f"{with_pooling(name)}: the reference is in {reference}, which "
                         "transformers' own code cannot leave.")
    # The reasons name the family; here one stands for all that have it.
    reasons = {(score, reason.replace(f"{name.split()[0]} models", "these models"))
               for name, row in result["families"].items()
               for score, reason in row["unavailable"].items()}
    notes += [f"–: no `{score}`, {reason}." for score, reason in sorted(reasons)]
    return " ".join(notes)


def costs(result):
    """One row per family."""
    systems = [*SCORES, "all rows"]
    rows = []
    for name, row in result["families"].items():
        ratio = row["cost"]["ratio"]
        cells = [f"{ratio[system][0]:.1f}" if system in ratio else "–" for system in systems]
        rows.append([with_pooling(name), row["path"], row["cost"]["plain"], *cells])
    head = [*(f"`{score}`" for score in SCORES), "rows of all layers"]
    return table(["model", "path", "plain", *head], rows)


def faithfulness():
    """Comprehensiveness of each score on the real classifiers, and what it costs."""
    result = json.loads((RESULTS / "faithfulness.json").read_text())
    rows = {(row["model"], row["perturbation"], row["score"]): row for row in result["rows"]}
    models = [*dict.fromkeys(row["model"] for row in result["rows"])]
    changes = [(model, changed) for model in models for changed in ("masked", "removed")]
    names = sorted({name for *_, name in rows}, key=lambda name: -sum(
        rows[model, changed, name]["comprehensiveness"] for model, changed in changes))
    lines = []
    for name in names:
        cells = [interval(*(rows[model, changed, name][f"comprehensiveness{end}"]
                            for end in ("", "_low", "_high"))) for model, changed in changes]
        costs = [f"{rows[model, 'masked', name]['passes']:.1f}" for model in models]
        lines.append([written(name), *cells, " / ".join(costs)])
    head = [f"{model}, {changed}" for model, changed in changes]
    n = result["rows"][0]["n_documents"]
    return "\n\n".join([
        "\n".join(["```console", "$ clsight validate run --sample 1000 | tail -3",
                   *result["verdict"], "```"]),
        table(["score", *head, "passes"], lines),
        f"Comprehensiveness on {n:,} unseen reviews a model, in {result['dtype']}, with 95 % "
        f"intervals over documents. Passes ({', '.join(models)}): seconds over those of clsight's "
        "own forward pass without scores. Methods of others, not in code type, run in float32.",
        measured_on(result),
    ])


def shortcuts():
    """Precision of every score on planted words, and what the test of words finds."""
    result = json.loads((RESULTS / "shortcuts.json").read_text())
    cases = {tuple(key.split(", ")): row for key, row in result["rows"].items()}
    kinds = [*dict.fromkeys(kind for _, kind, _ in cases)]
    parts = []
    for kind in kinds:
        own = {(data, model): row for (data, other, model), row in cases.items() if other == kind}
        names = sorted(next(iter(own.values()))["precision"], key=lambda name: -sum(
            row["precision"][name][0] for row in own.values()))
        head = [f"{data}, {model}" for data, model in own]
        lines = [[written(name), *(interval(*row["precision"][name], 2) for row in own.values())]
                 for name in names]
        parts.append(table([f"**{kind}**", *head], lines))
    scores = [*next(iter(cases.values()))["found"]]
    found = [[written(score), *(found_by(score, [row for (_, other, _), row in cases.items()
                                                 if other == kind]) for kind in kinds)]
             for score in scores]
    unlearned = [", ".join(key) for key, row in cases.items() if not row["learned"]]
    return "\n\n".join([
        "Share of planted words among the k highest of a text, k how many are planted (1, 2, 2):",
        *parts,
        f"Not learned (fewer than 95 % of held-out patterns): {'; '.join(unlearned) or 'none'}. "
        "Planted words that `over_attended` names, of all in six runs, and other words that it "
        "names:",
        table(["score", *kinds], found), measured_on(result),
    ])


def found_by(score, rows):
    """How many of the planted words, and how many others, all rows together."""
    found, planted = (sum(row["found"][score][name] for row in rows)
                      for name in ("found", "planted"))
    others = sum(len(row["found"][score]["others"]) for row in rows)
    return f"{found} of {planted}" + (f", {others} other" if others else "")


def human():
    """How high scores rank the words that people changed."""
    result = json.loads((RESULTS / "human.json").read_text())
    rows = result["rows"]
    names = sorted(next(iter(rows.values()))["scores"], key=lambda name: -sum(
        row["scores"][name]["average_precision"][0] for row in rows.values()))
    measures = {"average_precision": "average precision", "rank": "rank"}
    head = [f"{model}, {measure}" for model in rows for measure in measures.values()]
    lines = [[written(name), *(interval(*row["scores"][name][measure], 2)
                               for row in rows.values() for measure in measures)]
             for name in names]
    asked = "; ".join(f"{model}: {row['texts']} texts of {row['pairs']} pairs, {row['edited']:.0%} "
                      f"of the words edited, accuracy {row['accuracy']:.0%}"
                      for model, row in rows.items())
    return "\n\n".join([
        table(["score", *head], lines),
        f"{asked}. 95 % intervals over pairs; rank: 0 is first, a half is chance.",
        measured_on(result),
    ])


def written(name):
    """A score in code type, another method in words."""
    methods = ("random", "leave_one_out", "gradient_x_input", "integrated_gradients")
    return name.replace("_", " ") if name in methods else f"`{name}`"


def interval(mean, low, high, digits=3):
    """A mean and its 95 % interval."""
    return f"{mean:.{digits}f} ({low:.2f} to {high:.2f})"


def under_costs(result):
    """What was timed, and how far apart the rounds were."""
    apart = [(high - low) / median for row in result["families"].values()
             for median, low, high in row["cost"]["ratio"].values()]
    return (
        "Random models of 6 layers and width 384 in float32; "
        f"{result['documents']} documents of {result['pieces']:,} pieces; plain: length-sorted, "
        f"padded batches of 32. Median of {result['rounds']} interleaved rounds; from the least "
        f"to the greatest ratio it is {statistics.median(apart):.0%} of the median in half of the "
        f"cells, {max(apart):.0%} at most. Rows of all layers: `contribution` with them, in times "
        "of `contribution` with the last layer's alone."
    )


def with_pooling(name):
    """The name of a family as it is read: "modernbert mean" -> modernbert, mean pooling."""
    family, _, pooling = name.partition(" ")
    return f"{family}, {pooling} pooling" if pooling else family


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def main():
    wanted = sys.argv[1:] or [*SESSIONS, *TABLES]
    text = README.read_text()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "work")
        folder.mkdir()
        Path(parent, "shared").symlink_to(SHARED)
        for name in wanted:
            new = TABLES[name]() if name in TABLES else session(SESSIONS[name], folder)
            block = f"<!-- {name} -->\n{new}\n<!-- /{name} -->"
            text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text,
                          flags=re.DOTALL)
    README.write_text(text)


TABLES = {"families": families, "benchmark": benchmark, "extraction": extraction,
          "whole": whole, "kernels": kernels, "queries": queries,
          "calibration": calibration, "pages": pages, "survival": survival,
          "faithfulness": faithfulness, "shortcuts": shortcuts, "human": human,
          "executors": executors, "sizing": sizing}


if __name__ == "__main__":
    main()
