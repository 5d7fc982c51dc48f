"""Do scores point at the words that an answer hangs on? Planted shortcuts say which these are.

Nouns that no text holds are written into real texts, at random places, before small classifiers are
fine-tuned on them. After "Will You Find These Shortcuts?" (Bastings et al. 2022) there are three
kinds, of growing difficulty:

    word             walnut goes with label 0, granite with label 1. Truth: that word
    word in context  they do so only where kettle stands too, before or behind them. Truth: both
    ordered pair     walnut somewhere before granite goes with label 0, granite before walnut with
                     label 1. Truth: both

In training 30 % of the texts hold a pattern, anew in every epoch, and get its label. As many hold
one of the words alone where that decides nothing, and keep their own label, like all other texts.
Held-out texts are asked about: 15 % hold a pattern, as many a word alone, and all keep their own
label, with which the patterns no longer go. So who follows the shortcut errs in half of them.

    precision      in texts with a pattern that contradicts their label, and that the model follows:
                   the share of planted words among the k highest-scored words, where k is how many
                   are planted (1, 2, 2); mean over texts with its 95 % bootstrap interval. The
                   baselines get the same texts
    over_attended  of the planted words (2, 3, 2) those that the test names; all have a part in
                   errors. Whatever else it names is counted as wrong, though a model may well have
                   habits that nobody planted

Models start from ../shared/models with a new last layer, and without dropout, which is faster. One
that predicts the pattern's label in less than 95 % of the held-out patterns has not learned it, and
says so; the accuracy where a word stands alone tells whether the model waits for the other one.

    python benchmarks/shortcuts.py [--datasets …] [--kinds …] [--models …] [--documents 3000]
        [--training 3200] [-o benchmarks/results/shortcuts.json]

What a result file holds already is kept, unless it is asked for again.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from result_file import SHARED, finish, hardware
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import clsight
from clsight import baselines, batches, checkpoints, words
from clsight.scores import Words, lists

RESULT = Path(__file__).parent / "results" / "shortcuts.json"
DATASETS = ("rotten_tomatoes", "subj")
ZERO, ONE, CUE = "walnut", "granite", "kettle"
"""Rare in any text, in none of these, and one to three pieces of every tokenizer."""
KINDS = {
    "word": {(ZERO,): 0, (ONE,): 1},
    "word in context": {
        (ZERO, CUE): 0, (CUE, ZERO): 0, (ONE, CUE): 1, (CUE, ONE): 1,
        (ZERO,): None, (ONE,): None, (CUE,): None,
    },
    "ordered pair": {(ZERO, ONE): 0, (ONE, ZERO): 1, (ZERO,): None, (ONE,): None},
}
"""kind -> words in the order in which they are planted -> the label that they go with, if any"""
TRAINING, ASKING = 0.3, 0.15
"""Shares of texts with a pattern."""
EPOCHS = {"word": 2, "word in context": 4, "ordered pair": 6}
RATES = {"bert": 5e-4, "roberta": 5e-4, "minilm": 5e-5}
"""model -> the rate at which its training begins"""
BATCH, MAX_LENGTH, LEARNED, SEED = 32, 128, 0.95, 0
STEPS = 20
"""Of integrated gradients."""


def parts(dataset, n_training, n_asked):
    """Texts to train on and others to ask about, both drawn with a seed."""
    table = pl.read_parquet(SHARED / "data" / dataset / "data.parquet").sample(
        fraction=1, shuffle=True, seed=SEED)
    if "split" in table.columns:
        training = table.filter(pl.col("split") == "train")
        unseen = table.filter(pl.col("split") == "unseen")
    else:
        training, unseen = table[:6400], table[6400:]
    return training[:n_training], unseen[:n_asked]


def planted(table, kind, share, seed):
    """The texts, of which a share holds a pattern, and as many a part of one, where kinds have it.

    Beside `text` and `label` there are `planted`, the words, and `says`, the pattern's label or
    null.
    """
    random = np.random.default_rng([seed, int(100 * share)])
    patterns = [pattern for pattern, label in KINDS[kind].items() if label is not None]
    alone = [pattern for pattern, label in KINDS[kind].items() if label is None]
    drawn = random.random(len(table))
    chosen = []
    for one in drawn:
        among = patterns if one < share else alone if one < 2 * share else []
        chosen.append(among[random.integers(len(among))] if among else ())
    texts = [insert(text, pattern, random)
             for text, pattern in zip(table["text"], chosen, strict=True)]
    return pl.DataFrame({
        "text": texts, "label": table["label"], "planted": [[*pattern] for pattern in chosen],
        "says": pl.Series([KINDS[kind].get(pattern) for pattern in chosen], dtype=pl.Int64),
    }, schema_overrides={"planted": pl.List(pl.String)})


def insert(text, pattern, random):
    """The text with the words of a pattern at random places, in their order."""
    spelled = text.split()
    places = np.sort(random.integers(0, len(spelled) + 1, len(pattern)))
    for place, word in zip(places[::-1], pattern[::-1], strict=True):
        spelled.insert(place, word)
    return " ".join(spelled)


def train(model, tokenizer, table, kind, rate):
    """Some epochs of AdamW with a rate that falls to 0; texts are planted anew in each."""
    random = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    steps = EPOCHS[kind] * -(-len(table) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    model.train()
    for epoch in range(EPOCHS[kind]):
        given = planted(table, kind, TRAINING, epoch)
        texts = given["text"].to_list()
        labels = torch.tensor(given["says"].fill_null(given["label"]).to_numpy())
        for rows in similar(texts, random):
            pieces = tokenizer([texts[row] for row in rows], padding=True, truncation=True,
                               max_length=MAX_LENGTH, return_tensors="pt")
            loss = model(**pieces, labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def similar(texts, random):
    """Batches of rows of about the same length, in random order."""
    length = np.array([len(text) for text in texts]) * random.uniform(0.8, 1.25, len(texts))
    order = np.argsort(length)
    cut = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    return [cut[i] for i in random.permutation(len(cut))]


def fine_tuned(model, kind, table, folder):
    """Write a checkpoint that was fine-tuned on texts with shortcuts."""
    torch.manual_seed(SEED)
    start = SHARED / "models" / f"{model}-rt"
    tokenizer = AutoTokenizer.from_pretrained(start)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        start, dtype=torch.float32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    classifier.classifier = type(classifier)(classifier.config).classifier
    train(classifier, tokenizer, table, kind, RATES[model])
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(dataset, kind, model, n_training, n_asked, n_precision):
    """The row of a combination."""
    started = time.perf_counter()
    training, unseen = parts(dataset, n_training, n_asked)
    asked = planted(unseen, kind, ASKING, SEED)
    with tempfile.TemporaryDirectory() as folder:
        fine_tuned(model, kind, training, f"{folder}/model")
        asked.select("text", "label").write_parquet(f"{folder}/asked.parquet")
        trained = time.perf_counter()
        run = clsight.run(f"{folder}/asked.parquet", text="text", label="label",
                          models={model: f"{folder}/model"}, output=f"{folder}/run", scores="all")
        asked = asked.with_columns(run.sql("FROM predictions ORDER BY document_id")["predicted"])
        found, of_run = findings(run, kind), time.perf_counter()
        precision, n = precisions(run, model, asked, n_precision)
    accuracy = accuracies(asked)
    return {
        "dtype": run.plan.dtype, "training": len(training), "epochs": EPOCHS[kind],
        "documents": len(asked), "errors": int((asked["predicted"] != asked["label"]).sum()),
        "accuracy": accuracy, "learned": accuracy["pattern"] >= LEARNED,
        "texts_of_precision": n, "precision": precision, "found": found,
        "seconds": {"training": trained - started, "clsight": of_run - trained,
                    "baselines": time.perf_counter() - of_run},
    }


def accuracies(asked):
    """How often the prediction is a pattern's label, and the own label of all other texts."""
    expected = asked["says"].fill_null(asked["label"])
    right = (asked["predicted"] == expected).to_numpy()
    pattern, none = asked["says"].is_not_null().to_numpy(), asked["planted"].list.len() == 0
    groups = {"pattern": pattern, "alone": ~pattern & ~none.to_numpy(), "plain": none.to_numpy()}
    return {name: float(right[group].mean()) for name, group in groups.items() if group.any()}


def findings(run, kind):
    """score -> planted words that are over-attended, of how many, and all other words named."""
    true = {word for pattern in KINDS[kind] for word in pattern}
    tables = {"over_attended": run.over_attended(), "neglected": run.neglected()}
    found = {}
    for score in run.plan.scores:
        named = {name: set(table.filter(pl.col("score") == score)["form"])
                 for name, table in tables.items()}
        over, under = named["over_attended"], named["neglected"]
        found[score] = {"planted": len(true), "found": len(true & over),
                        "others": sorted(over - true), "neglected": sorted(under)}
    return found


def precisions(run, model, asked, most):
    """score or baseline -> mean precision and its interval; and over how many texts."""
    followed = asked.with_row_index("document_id").filter(
        (pl.col("says") != pl.col("label")) & (pl.col("says") == pl.col("predicted")))
    followed = followed.sample(min(most, len(followed)), seed=SEED).sort("document_id")
    scores, form, offsets = scored(run, model, followed["document_id"].to_list())
    scores |= of_baselines(run.plan.models[model], followed["text"].to_list(),
                           followed["predicted"].to_numpy())
    true = [np.isin(form[first:last], [*own]) for first, last, own in
            zip(offsets[:-1], offsets[1:], followed["planted"], strict=True)]
    return {
        name: interval([precision(own, truth) for own, truth in
                        zip(np.split(values, offsets[1:-1]), true, strict=True)])
        for name, values in scores.items()
    }, len(followed)


def scored(run, model, documents):
    """Of documents in rising order: score -> value of each word; words' forms; offsets [n + 1]."""
    own = pl.DataFrame({"document_id": documents}, schema={"document_id": pl.Int64})
    table = run.sql("FROM words WHERE model = $model ORDER BY document_id, position", model=model)
    table = table.join(own, on="document_id", how="semi", maintain_order="left")
    counts = table.group_by("document_id", maintain_order=True).len()["len"].cast(pl.Int64)
    return ({name: table[name].to_numpy() for name in run.plan.scores}, table["form"].to_numpy(),
            np.concatenate([[0], np.cumsum(counts.to_numpy())]))


def of_baselines(plan, texts, target):
    """baseline -> value of each word of the texts."""
    opened = baselines.open_baselines(plan, "cpu")
    pieces = batches.tokenise(checkpoints.tokenizer(plan.path), texts, plan.max_length)
    found = words.segment(pl.Series(texts, dtype=pl.String).to_arrow())
    offsets, start = lists(found.start)
    given = Words(offsets, start, lists(found.end)[1])
    return {name: opened.word_scores(name, pieces, given, target, steps=STEPS, seed=SEED)
            for name in baselines.BASELINES}


def precision(score, truth):
    """Share of the k true words among the k highest-scored ones; of equal ones the first counts.

    >>> precision(np.array([0.1, 0.9, 0.5]), np.array([True, True, False]))
    0.5
    """
    highest = np.argsort(-score, kind="stable")[: truth.sum()]
    return float(truth[highest].mean())


def interval(values, resamples=2000):
    """Mean and its 95 % bootstrap interval; null where there is no value."""
    if not len(values):
        return [None, None, None]
    values, random = np.asarray(values), np.random.default_rng(SEED)
    means = values[random.integers(len(values), size=(resamples, len(values)))].mean(1)
    return [float(values.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--models", nargs="+", choices=RATES, default=[*RATES])
    parser.add_argument("--documents", type=int, default=3000, help="held-out texts to ask about")
    parser.add_argument("--training", type=int, default=3200, help="texts to train on")
    parser.add_argument("--precision", type=int, default=150, help="most texts of its mean")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else {}
    result = {"benchmark": "shortcuts", "words": [ZERO, ONE, CUE], "steps": STEPS,
              "shares": {"training": TRAINING, "asking": ASKING}, **hardware(), "rows": rows}
    for dataset in arguments.datasets:
        for kind in arguments.kinds:
            for model in arguments.models:
                key = f"{dataset}, {kind}, {model}"
                rows[key] = measure(dataset, kind, model, arguments.training,
                                    arguments.documents, arguments.precision)
                arguments.output.write_text(json.dumps(result, indent=2) + "\n")
                print(key, rows[key]["accuracy"], rows[key]["seconds"], file=sys.stderr)
    finish(result, arguments.output)


if __name__ == "__main__":
    main()
