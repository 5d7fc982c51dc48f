"""Does the test of words cry wolf, and does it find what is there?

    calibration  errors of real runs permuted within the strata of a reference: nothing is to be
                 found, by either reference, by both, or by the whole criterion. Where errors are
                 permuted within the strata of predictions, labels follow from them (two classes),
                 and strata of the labels are made anew by the rule of sql/views/strata.sql; and
                 the other way round. Beside it, on the same permuted errors and on the real ones,
                 what is often done instead: Welch's t-test and Mann-Whitney's of a word's mass in
                 errors against correct documents, and the log-odds of its occurrences with an
                 informative Dirichlet prior (Monroe, Colaresi and Quinn 2008)
    confounds    real documents, errors and confidences; masses that depend on confidence, on
                 length, or on the place of a word alone, in samples of several sizes
    tails        p from three moments against p from 100,000 permutations, for the words of real
                 runs that are little enough skewed to be given the former
    models       two models of a real run, which change places in each document at random: nothing
                 tells them apart, and heterogeneity, the difference of adjusted ratios and the
                 paired test are to find nothing
    power        made documents, in which errors follow from a word, from a word where another
                 stands in the document, or from two words in one order, by number of documents

All at the level of masses and strata, by the package's own code; seeded.

    python benchmarks/calibration.py RUN [RUN …] [--part calibration …] [-o RESULT.json]

A RUN is a folder that clsight made with two classes in --dtype float32.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
from result_file import finish, hardware

import clsight
from clsight import comparisons, statistics
from clsight.bootstrap import Bootstrap
from clsight.masses import Mass
from clsight.permutations import Permutations
from clsight.replicates import Strata

ROUNDS, PERMUTATIONS, RESAMPLES = 200, 20_000, 200
RESAMPLES_OF_MODELS = statistics.Options.bootstrap
LEVEL = 0.05


@dataclass(frozen=True)
class Documents:
    """N documents of two classes as a model sees them."""

    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    n_words: np.ndarray

    @property
    def strata(self):
        """Strata under both references, and errors."""
        given = (self.confidence, self.n_words)
        return Strata(np.arange(len(self.label)),
                      np.stack([strata(self.predicted, *given), strata(self.label, *given)]),
                      self.label != self.predicted)

    def permuted(self, reference, random):
        """With errors permuted within the strata of a reference, whose classes stay."""
        own = self.strata
        error = own.error.copy()
        for stratum in np.unique(own.stratum[reference]):
            inside = np.flatnonzero(own.stratum[reference] == stratum)
            error[inside] = error[random.permutation(inside)]
        if reference == 0:
            return Documents(np.where(error, 1 - self.predicted, self.predicted), self.predicted,
                             self.confidence, self.n_words)
        return Documents(self.label, np.where(error, 1 - self.label, self.label), self.confidence,
                         self.n_words)


def ranked(value):
    """Rank of each value from 0; equal ones in their order."""
    rank = np.empty(len(value), dtype=np.int64)
    rank[np.argsort(value, kind="stable")] = np.arange(len(value))
    return rank


def strata(group, confidence, n_words):
    """The rule of sql/views/strata.sql in NumPy."""
    stratum, before = np.empty(len(group), dtype=np.int32), 0
    for own in np.unique(group):
        of_class = np.flatnonzero(group == own)
        size = len(of_class)
        bins = max(1, min(size // 20, max(10, round(10 * (size / 2000) ** 0.25))))
        part = ranked(confidence[of_class]) * bins // size
        for one in range(bins):
            of_bin = of_class[part == one]
            lengths = max(1, min(len(of_bin) // 20, max(3, round(3 * np.cbrt(size / 2000)))))
            stratum[of_bin] = before + ranked(n_words[of_bin]) * lengths // len(of_bin)
            before += lengths
    return stratum


def read(run, score):
    """Documents of each model of a run, masses of the tested words, and their forms."""
    found = {}
    for model in run.plan.models:
        rows = run.sql(
            'SELECT "row", p.label, predicted, confidence, n_words FROM predictions AS p '
            f"JOIN documents USING (\"row\") SEMI JOIN tested_documents USING (\"row\") "
            f"WHERE model = '{model}' ORDER BY \"row\"")
        pairs = run.sql(
            f"SELECT form, \"row\", {score} AS x, n_occurrences FROM word_mass "
            f"JOIN (SELECT DISTINCT form FROM tested_words WHERE kind = 'word') USING (form) "
            f"SEMI JOIN tested_documents USING (\"row\") "
            f"WHERE model = '{model}' ORDER BY form, \"row\"")
        forms = pairs["form"].unique(maintain_order=True)
        counts = pairs.group_by("form", maintain_order=True).len()["len"].cast(int).to_numpy()
        mass = Mass(np.concatenate([[0], np.cumsum(counts)]),
                    np.searchsorted(rows["row"].to_numpy(), pairs["row"].to_numpy()),
                    pairs["x"].to_numpy()[None].copy())
        columns = ("label", "predicted", "confidence", "n_words")
        documents = Documents(*(rows[name].to_numpy() for name in columns))
        found[model] = documents, mass, forms.to_list(), pairs["n_occurrences"].to_numpy()
    return found


def tested(documents, mass, seed):
    """p [side, reference, word], and what the whole criterion finds: over, under [word]."""
    own = documents.strata
    moments = comparisons.moments(mass, own)
    p, _ = statistics.one_sided(moments, mass, slice(None), Permutations(own, seed, PERMUTATIONS),
                                statistics.Options.max_skewness)
    p = p[:, :, 0]
    ratio = statistics.describe(moments, own.error.sum(), (~own.error).sum())["mass_ratio"][0]
    near = [significant(side.max(0)) for side in p]
    found = np.zeros((2, p.shape[2]), bool)
    if any(side.any() for side in near):
        consistency = Bootstrap([own], seed, RESAMPLES).resample([mass]).consistency[:, 0, 0]
        found[0] = near[0] & (consistency[0] >= 0.95) & ~(ratio < 1.2)
        found[1] = near[1] & (consistency[1] >= 0.95) & (ratio <= 1 / 1.2)
    return p, found


def significant(p):
    """Words with q < `LEVEL` by Benjamini and Hochberg."""
    return scipy.stats.false_discovery_control(np.minimum(p, 1)) < LEVEL


def naive(documents, mass, occurrences):
    """p [word] of the three tests that are often made instead, two-sided."""
    error, n = documents.label != documents.predicted, len(documents.label)
    welch, mann, counts = [], [], np.zeros((2, mass.shape[1]))
    for word in range(mass.shape[1]):
        entries = slice(mass.offsets[word], mass.offsets[word + 1])
        x = np.zeros(n)
        x[mass.document[entries]] = mass.x[0, entries]
        welch.append(scipy.stats.ttest_ind(x[error], x[~error], equal_var=False).pvalue)
        mann.append(scipy.stats.mannwhitneyu(x[error], x[~error]).pvalue)
        for side, inside in enumerate((error, ~error)):
            counts[side, word] = occurrences[entries][inside[mass.document[entries]]].sum()
    return {"welch": np.array(welch), "mann-whitney": np.array(mann), "log-odds": odds(counts)}


def odds(counts):
    """p [word] of the z of log-odds ratios; the prior is the words' frequency, 500 in all."""
    prior = 500 * counts.sum(0) / counts.sum()
    total = counts.sum(1, keepdims=True) + prior.sum()
    logits = np.log((counts + prior) / (total - counts - prior))
    z = (logits[0] - logits[1]) / np.sqrt((1 / (counts + prior)).sum(0))
    return 2 * scipy.stats.norm.sf(np.abs(z))


def calibrate(runs):
    """Shares of permuted runs in which anything is found, and of words with p < 0.05."""
    found = {}
    for path in runs:
        for score in ("uniform", "contribution", "deeplift"):
            for model, (documents, mass, forms, occurrences) in read(
                    clsight.open(path), score).items():
                key = f"{path.name}, {model}, {score}"
                found[key] = of_model(documents, mass, forms, occurrences)
                print(key, json.dumps(found[key]), file=sys.stderr)
    return found


def of_model(documents, mass, forms, occurrences):
    """Calibration of one model's test by one score."""
    random, kept = np.random.default_rng(0), []
    for seed in range(ROUNDS):
        permuted = documents.permuted(seed % 2, random)
        p, whole = tested(permuted, mass, seed)
        own = p[:, seed % 2]
        both = p.max(1)
        kept.append({
            "own, more": significant(own[0]).any(), "own, less": significant(own[1]).any(),
            "both, more": significant(both[0]).any(), "both, less": significant(both[1]).any(),
            "both, two-sided": significant(2 * both.min(0)).any(),
            "over": whole[0].any(), "under": whole[1].any(),
            "own p < 0.05": (own < LEVEL).mean(), "larger p < 0.05": (both < LEVEL).mean(),
        })
        if seed < 10:
            kept[-1] |= {name: significant(values).sum()
                         for name, values in naive(permuted, mass, occurrences).items()}
    shares = {name: float(np.mean([one[name] for one in kept if name in one])) for name in kept[0]}
    p, whole = tested(documents, mass, 0)
    real = {name: int(significant(values).sum())
            for name, values in naive(documents, mass, occurrences).items()}
    least = np.argmin(first := naive(documents, mass, occurrences)["welch"])
    return {"rounds": ROUNDS, "words": len(forms), "documents": len(documents.label),
            "permuted": shares, "real": real | {"over": int(whole[0].sum()),
                                                "under": int(whole[1].sum())},
            "welch's first": [forms[least], float(first[least])]}


def confound(runs):
    """Runs in which masses that know nothing of words show any word: share by kind and size."""
    documents, mass, _, _ = read(clsight.open(runs[0]), "uniform")["bert"]
    return {kind: {str(n): confounded(kind, documents, mass, n) for n in (4262, 20_000, 100_000)}
            for kind in ("confidence", "length", "position")}


def confounded(kind, documents, mass, n):
    """Shares of runs with any word over, under; the real documents where n is theirs."""
    found = []
    for seed in range(40):
        random = np.random.default_rng([seed, n])
        drawn = np.arange(n) if n == len(documents.label) else random.integers(
            0, len(documents.label), n)
        some = Documents(*(getattr(documents, name)[drawn] for name in
                           ("label", "predicted", "confidence", "n_words")))
        # Ties are broken, so that a document drawn twice is not matched with itself alone.
        some = Documents(some.label, some.predicted,
                         some.confidence + random.normal(0, 1e-3, n), some.n_words)
        p, whole = tested(some, made(kind, some, mass, random), seed)
        both = p.max(1)
        found.append([whole[0].any(), whole[1].any(), significant(both[0]).any(),
                      significant(both[1]).any()])
    return dict(zip(("over", "under", "q more", "q less"), np.mean(found, 0).tolist(),
                    strict=True))


def made(kind, documents, mass, random):
    """Masses of words that stand in documents at random, longer ones more often."""
    n = len(documents.label)
    frequency = np.diff(mass.offsets) / len(np.unique(mass.document))
    held = [np.flatnonzero(random.random(n) < np.minimum(
        0.95, own * documents.n_words / documents.n_words.mean())) for own in frequency]
    document = np.concatenate(held)
    length = documents.n_words[document]
    base = {"confidence": (1.5 - documents.confidence[document]) ** 3 / length,
            "length": 1 / length**1.5,
            "position": random.integers(1, length + 1) ** -1.0 / np.log(length + 2)}[kind]
    x = base * random.gamma(4, 0.25, len(document))
    return Mass(np.concatenate([[0], np.cumsum([len(own) for own in held])]), document, x[None])


def tails(runs):
    """Ratios of p from moments to p from permutations, by the size of p."""
    ratios, largest = {}, 100_000
    for path in runs:
        for score in ("uniform", "contribution", "deeplift"):
            for documents, mass, _, _ in read(clsight.open(path), score).values():
                own, every = documents.strata, np.ones(mass.shape[1], bool)
                moments = comparisons.moments(mass, own)
                p, skewed = statistics.one_sided(
                    moments, mass, slice(None), Permutations(own, 0, 1),
                    statistics.Options.max_skewness)
                counted = Permutations(own, 0, largest).p_values(mass, every)
                for one, other in zip(p[..., ~skewed].ravel(), counted[..., ~skewed].ravel(),
                                      strict=True):
                    # Fewer than 50 of 100,000 permutations are too few to count on.
                    if other > 50 / largest:
                        decade = f"1e{int(np.floor(np.log10(other)))}"
                        ratios.setdefault(decade, []).append(one / other)
    return {decade: {"p": len(own), "ratio": np.quantile(own, [0.5, 0.05, 0.95]).tolist()}
            for decade, own in sorted(ratios.items())}


def models(runs):
    """Shares of runs with any q < 0.05, and of words with p < 0.05, where models are exchanged."""
    found = {}
    for path in runs:
        run = clsight.open(path)
        if len(run.plan.models) > 1:
            for score in ("uniform", "contribution", "deeplift"):
                one, other = list(read(run, score).values())[:2]
                kept = [exchanged(one[:2], other[:2], seed) for seed in range(ROUNDS)]
                key = f"{path.name}, {' and '.join(list(run.plan.models)[:2])}, {score}"
                found[key] = {
                    test: {"runs": float(np.mean([significant(p[test]).any() for p in kept])),
                           "words": float(np.mean([(p[test] < LEVEL).mean() for p in kept]))}
                    for test in kept[0]}
                print(key, found[key], file=sys.stderr)
    return found


def exchanged(one, other, seed):
    """p [word] of the tests of two models that change places in half of the documents."""
    random = np.random.default_rng(seed)
    swap = random.random(len(one[0].label)) < 0.5
    pairs = swap[one[1].document]
    given = []
    for (own, x), (others, y) in ((one, other), (other, one)):
        documents = Documents(own.label, np.where(swap, others.predicted, own.predicted),
                              np.where(swap, others.confidence, own.confidence), own.n_words)
        given.append((documents, Mass(x.offsets, x.document, np.where(pairs, y.x, x.x))))
    (first, x), (second, y) = given
    strata_of = [first.strata, second.strata]
    ratios = np.stack([statistics.adjusted(comparisons.moments(mass, own))[0]
                       for mass, own in zip((x, y), strata_of, strict=True)])
    covariance = Bootstrap(strata_of, seed, RESAMPLES_OF_MODELS).resample([x, y]).covariance[0]
    freedom = np.minimum(*map(statistics.degrees_of_freedom, (x, y), strata_of))[0]
    _, heterogeneity = statistics.heterogeneity(ratios, covariance, freedom)
    z = statistics.difference(*ratios, covariance)
    part = comparisons.paired(*strata_of, first.label, first.confidence - second.confidence, seed,
                              PERMUTATIONS)
    mass = part.mass(Mass(x.offsets, x.document, x.x - y.x))
    moments = comparisons.moments(mass, part.permutations.strata)
    p, _ = statistics.one_sided(moments, mass, slice(None), part.permutations,
                                statistics.Options.max_skewness)
    enough = moments.n_documents >= statistics.Options.min_documents
    known = {"heterogeneity": heterogeneity, "difference": statistics.two_sided(z, freedom),
             "paired": np.where(enough, np.minimum(1, 2 * p[:, 0, 0].min(0)), np.nan)}
    return {test: values[~np.isnan(values)] for test, values in known.items()}


def power(_):
    """Recall of what was planted and precision, by kind, frequency, strength and the data."""
    found = {}
    for kind, strengths in PLANTED.items():
        for n in (1000, 4000, 20_000, 100_000):
            for frequency in (0.01, 0.05, 0.2):
                for times in strengths:
                    key = f"{kind}, {n}, {frequency}, {times}"
                    found[key] = planted(kind, n, frequency, times)
                    print(key, found[key], file=sys.stderr)
    return found


PLANTED = {"word": (1.5, 2.0, 3.0), "word in context": (2.0, 3.0), "ordered pair": (2.0, 3.0)}
"""kind -> how many times as high the odds of an error are"""


def planted(kind, n, frequency, times, n_words=200):
    """Two shortcuts, each active in a share `frequency` of n documents.

    Documents of 5 to 35 words, of two classes; 15 % errors, less confident ones more often.
    Words stand in them with frequencies between 1 and 20 %; masses are gamma / length. Where a
    shortcut is active the odds of an error are `times` as high, and if the document errs the
    shortcut's unit holds twice its mass. A word in context is active where another word, of half
    the documents, stands too; it is the word that is to be found. A pair is two words, active in
    one of their two orders; it is a unit of its own (a bigram), the other order is another one.
    Units that go with a shortcut (context, a pair's words) count neither as right nor as wrong.
    """
    right, wrong = 0, 0
    rounds = {1000: 30, 4000: 30, 20_000: 8, 100_000: 3}[n]
    for seed in range(rounds):
        random = np.random.default_rng([seed, n, int(100 * frequency), int(10 * times),
                                        list(PLANTED).index(kind)])
        often = np.exp(random.uniform(np.log(0.01), np.log(0.2), n_words))
        holds, active, unit, aside = PLANT[kind](random.random((n_words, n)), often, frequency,
                                                 random)
        length, label = random.integers(5, 36, n), random.integers(0, 2, n)
        confidence = 1 / (1 + np.exp(-np.abs(random.normal(2, 1.5, n))))
        odds_of = 0.18 * np.exp(3 * (0.85 - confidence)) * np.where(active.any(0), times, 1)
        error = random.random(n) < odds_of / (1 + odds_of)
        x = holds * random.gamma(4, 0.25, (n_words, n)) / length
        x[unit] *= np.where(active & error, 2, 1)
        row, document = np.nonzero(holds)
        mass = Mass(np.concatenate([[0], np.cumsum(holds.sum(1))]), document,
                    x[row, document][None])
        _, whole = tested(Documents(label, np.where(error, 1 - label, label), confidence, length),
                          mass, seed)
        right += whole[0, unit].sum()
        wrong += np.delete(whole[0], [*unit, *aside]).sum()
    return {"rounds": rounds, "recall": float(right / (2 * rounds)), "false": int(wrong),
            "precision": float(right / (right + wrong)) if right + wrong else None}


def plant_words(drawn, often, frequency, _):
    """Units 0 and 1 are words."""
    often[:2] = frequency
    holds = drawn < often[:, None]
    return holds, holds[:2], [0, 1], []


def plant_in_context(drawn, often, frequency, _):
    """Units 0 and 1 are words, 2 and 3 what must stand beside them."""
    often[:4] = 2 * frequency, 2 * frequency, 0.5, 0.5
    holds = drawn < often[:, None]
    return holds, holds[:2] & holds[2:4], [0, 1], [2, 3]


def plant_pairs(drawn, often, frequency, random):
    """Units 0 and 1 are pairs, 2 and 3 their other orders, 4 to 7 their words."""
    often[4:8] = np.sqrt(2 * frequency)
    holds = drawn < often[:, None]
    both, order = holds[4:6] & holds[6:8], random.random((2, holds.shape[1])) < 0.5
    holds[:2], holds[2:4] = both & order, both & ~order
    return holds, holds[:2], [0, 1], [4, 5, 6, 7]


PLANT = {"word": plant_words, "word in context": plant_in_context, "ordered pair": plant_pairs}
"""kind -> (units that documents hold, where shortcuts are active, their units, others of them)"""


PARTS = {"calibration": calibrate, "confounds": confound, "tails": tails, "models": models,
         "power": power}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="+", type=Path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    done = {}
    if arguments.output and arguments.output.exists():
        done = json.loads(arguments.output.read_text())["parts"]
    for part in arguments.part:
        done[part] = PARTS[part](arguments.run)
    finish({"benchmark": "calibration", "hardware": hardware(), "parts": done}, arguments.output)


if __name__ == "__main__":
    main()
