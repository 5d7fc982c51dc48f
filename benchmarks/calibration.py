"""What the test of words finds where nothing is, and where something is, on data made with a seed.

    calibration  errors of real runs, permuted within the strata of one reference: then that
                 reference has nothing to find, and so have both together. Beside it, the tests that
                 are often done instead
    confounds    attention that follows confidence, length or place, and no word, in samples of
                 several sizes: what is left of the confound within strata?
    power        planted shortcuts in made documents: are they found, and what else?
    tails        Pearson III and normal tails against 400,000 permutations

    python benchmarks/calibration.py [--part calibration confounds power tails]
        [-o benchmarks/results/calibration.json]

The result file is merged part by part. Runs of real data are made in the folder for temporary files
(see cases.py); the test itself is criterion.py, compared with the tables of the runs first.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
from criterion import OPTIONS, adjusted, examined, findings, rule_in_use, strata
from naive_tests import Naive
from result_file import finish, hardware

RESULT = Path(__file__).parent / "results" / "calibration.json"
REFERENCES = ("predicted", "label")
N_PERMUTATIONS = 200


def calibration(rule):
    """Findings under permuted errors, model by model, and what naive tests find."""
    found = {}
    for dataset, models in cases.RUNS.items():
        run = cases.run(dataset)
        for model in models:
            case = cases.read(run, model)
            refuse_other_tables(case, run, model, rule)
            found[f"{dataset}, {model}"] = of_model(case, rule)
    return found


def refuse_other_tables(case, run, model, rule):
    """Raise `ArithmeticError` where q is not what the run says."""
    result = examined(case, rule)
    for score, ours in zip(run.plan.scores, np.moveaxis(result.q, 1, 0), strict=True):
        theirs = run.sql(f"SELECT q, q_under FROM word_statistics WHERE model = '{model}' "
                         f"AND score = '{score}' ORDER BY form").to_numpy().T
        if not np.allclose(ours, theirs, rtol=1e-9):
            raise ArithmeticError(f"{model}, {score}: criterion.py does not agree with the run")


def of_model(case, rule):
    """Shares of permutations with any finding, by reference that they leave nothing to find."""
    naive, error = Naive(case), case.documents.error
    own = strata(case.documents, rule)
    found = {"documents": len(error), "errors": int(error.sum()), "words": len(case.forms),
             "strata": (own.stratum.max(1) + 1).tolist(),
             "real": real(case, naive, rule), "permuted": {}}
    for reference, name in enumerate(REFERENCES):
        started, rng = time.perf_counter(), np.random.default_rng(reference)
        errors = np.stack([permuted(own.stratum[reference], error, rng)
                           for _ in range(N_PERMUTATIONS)])
        rounds = [under(replace(case, documents=case.documents.with_errors(one, name)),
                        reference, rule) for one in errors]
        found["permuted"][name] = {
            key: np.mean([one[key] for one in rounds], 0).tolist() for key in rounds[0]
        } | {"naive": alarms(naive.p_values(errors))}
        say(f"{name}: {time.perf_counter() - started:.0f} s", found["permuted"][name])
    return found


def permuted(stratum, error, rng):
    """Errors, drawn anew within each stratum."""
    found = np.empty_like(error)
    found[np.lexsort((rng.random(len(error)), stratum))] = error[np.argsort(stratum, kind="stable")]
    return found


def under(case, reference, rule):
    """What the test says of a labelling in which a reference has nothing to find, by score."""
    result = examined(case, rule)
    own, both = result.p[:, reference], result.p.max(1)
    largest = OPTIONS.max_q
    return {
        "own": (result.q_own[:, reference] <= largest).any(-1),
        "both": (result.q <= largest).any(-1),
        "both, two-sided": (result.q_two_sided <= largest).any(-1),
        "own p < 0.05": (own < 0.05).mean(-1),
        "larger p < 0.05": (both < 0.05).mean(-1),
    } | {name: units.any(-1) for name, units in findings(case, result).items()}


def alarms(p):
    """Test -> by score: share of labellings with any q <= 0.05, and mean number of such words."""
    named = {test: adjusted(np.moveaxis(own, 1, -1)) <= OPTIONS.max_q for test, own in p.items()}
    return {test: {"any": q.any(-1).mean(1).tolist(), "words": q.sum(-1).mean(1).tolist()}
            for test, q in named.items()}


def real(case, naive, rule):
    """What is found on the real labels, by score: by clsight, and by naive tests."""
    found = {}
    for name, units in findings(case, examined(case, rule)).items():
        found[name] = [case.forms[own].tolist() for own in units]
    for test, p in naive.p_values(case.documents.error[None]).items():
        q = adjusted(p[..., 0])
        found[test] = [{"words": int((own <= OPTIONS.max_q).sum()),
                        "first": case.forms[least.argmin()], "p": float(least.min())}
                       for own, least in zip(q, p[..., 0], strict=True)]
    return found


def say(*what):
    """Progress."""
    print(*(one if isinstance(one, str) else json.dumps(one) for one in what), file=sys.stderr,
          flush=True)


PARTS = {"calibration": calibration}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    rule = rule_in_use()
    parts = json.loads(arguments.output.read_text())["parts"] if arguments.output.exists() else {}
    for part in arguments.part:
        started = time.perf_counter()
        parts[part] = PARTS[part](rule) | {"seconds": time.perf_counter() - started}
        say(f"{part}: {parts[part]['seconds']:.0f} s")
    finish({
        "benchmark": "calibration", "hardware": hardware() | {"cores": os.cpu_count()},
        "scores": cases.SCORES, "rule": vars(rule), "parts": parts,
    }, arguments.output)


if __name__ == "__main__":
    main()
