"""What `validate` measures: by naive loops over plain models, by NumPy and SciPy."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from clsight import database, faithfulness, shards
from clsight.baselines import BASELINES, Baselines, open_baselines
from clsight.batches import Pieces
from clsight.cli import cli
from clsight.errors import UsageError
from clsight.extractor import devices
from clsight.faithfulness import FRACTIONS, MEASURES, PERTURBATIONS, TENTHS, Measured, verdict
from clsight.models import Classifier
from clsight.perturb import perturbed, ranks, top
from clsight.plan import load
from clsight.scorer import open_scorer
from clsight.scores import Words
from clsight.tables import SCORES
from clsight.validate import draw, validate
from clsight.verify import verify
from conftest import DEMO, VALIDATED
from reference import margin_of
from small_models import FAST, GENERAL, MAX_LENGTH, eager_model
from test_pipeline import run
from test_verify import flipped

SAMPLE, SEED, STEPS = VALIDATED.values()
MASK = 4


class Naive:
    """A checkpoint as transformers has it, in float64; one text at a time."""

    def __init__(self, path):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(
            path, attn_implementation="eager", dtype=torch.float64).eval().requires_grad_(False)

    def probabilities(self, ids):
        return self.logits(ids).softmax(-1)[0].numpy()

    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits

    def pieces(self, text, words):
        """[(piece, words [(start, end)] that it has a part of)]; see `scores.word_scores`."""
        given = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        found = []
        for piece, (start, end), special in zip(
            *(given[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask")),
            strict=True,
        ):
            own = [word for word in words if start < word[1] and word[0] < end]
            if not (special or own):  # a blank alone, say: it counts with the word behind it
                own = [next((word for word in words if start < word[1]), words[-1])]
            found.append((piece, own))
        return found

    def changed(self, text, words, chosen, remove=False):
        """The pieces of a text with some of its words masked, or removed."""
        marked = [(piece, bool({*own} & {*chosen})) for piece, own in self.pieces(text, words)]
        return [self.tokenizer.mask_token_id if hit else piece for piece, hit in marked
                if not (hit and remove)]

    def effects(self, text, words, scores, remove):
        """What faithfulness.MEASURES are of one text."""
        found = self.probabilities(self.changed(text, words, []))
        target, order = found.argmax(), np.argsort(-scores, kind="stable")

        def without(fraction, kept=False):
            n = max(1, round(fraction * len(words)))
            some = [words[i] for i in (order[n:] if kept else order[:n])]
            return self.probabilities(self.changed(text, words, some, remove))

        def fall(changed):
            return np.mean([found[target] - one[target] for one in changed])

        highest = [without(f) for f in FRACTIONS]
        return [fall(highest), fall([without(f, kept=True) for f in FRACTIONS]),
                fall([without(f) for f in TENTHS]),
                np.mean([one.argmax() != target for one in highest])]

    def leave_one_out(self, text, words):
        margin, target = self.margin(self.changed(text, words, []))
        return np.array([margin - self.margin(self.changed(text, words, [word]), target)[0]
                         for word in words])

    def margin(self, ids, target=None):
        """The margin of a class, by default the predicted one; and that class."""
        logits = self.logits(ids)
        target = int(logits.argmax()) if target is None else target
        return float(margin_of(logits, target)), target

    def attributed(self, text, words, points):
        """x - x0 times the gradient at points [(share of x, weight)], summed over words' pieces.

        Of a BERT; x0 has all words masked. At one point alone it is x times the gradient.
        """
        ids, masked = (self.changed(text, words, some) for some in ([], words))
        _, target = self.margin(ids)
        x, x0 = (self.model.bert.embeddings(torch.tensor([some])) for some in (ids, masked))
        total = torch.zeros_like(x)
        for share, weight in points:
            between = (x0 + share * (x - x0)).requires_grad_()
            hidden = self.model.bert.encoder(between).last_hidden_state
            margin = margin_of(self.model.classifier(self.model.bert.pooler(hidden)), target)
            total += weight * torch.autograd.grad(margin, between)[0]
        values = ((x - x0 if len(points) > 1 else x) * total).sum(-1)[0].numpy()
        pieces = self.pieces(text, words)
        return np.array([sum(value / len(own) for value, (_, own) in
                             zip(values, pieces, strict=True) if word in own) for word in words])


def words_of(document):
    return [*zip(document["start"], document["end"], strict=True)]


@pytest.fixture(scope="module")
def drawn(validated):
    return draw(validated, load(validated), SAMPLE, SEED).to_pylist()


@pytest.fixture(scope="module")
def naive():
    return {name: Naive(DEMO / name) for name in ("bert", "roberta")}


def rows(folder, sql="faithfulness"):
    with database.connect(folder) as connection:
        return database.query(connection, sql, {}).read_all().to_pylist()


def row(folder, **values):
    (found,) = [one for one in rows(folder) if all(one[name] == values[name] for name in values)]
    return found


@pytest.mark.parametrize("score", ["contribution", "uniform", "leave_one_out"])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_measures_are_those_of_a_naive_loop(validated, drawn, naive, model, perturbation, score):
    effects = []
    with database.connect(validated) as connection:
        for document in drawn:
            words = words_of(document)
            if score == "leave_one_out":
                scores = naive[model].leave_one_out(document["text"], words)
            else:
                scores = database.query(
                    connection, f"SELECT {score} FROM words WHERE model = $model AND "
                    "document_id = $id ORDER BY position",
                    {"model": model, "id": document["document_id"]},
                ).read_all()[score].to_numpy()
            effects.append(naive[model].effects(document["text"], words, scores,
                                                perturbation == "removed"))
    found = row(validated, model=model, score=score, perturbation=perturbation)
    assert found["n_documents"] == SAMPLE
    np.testing.assert_allclose([found[measure] for measure in MEASURES], np.mean(effects, axis=0),
                               atol=2e-5)


def test_sums_of_scores_are_held_against_what_masking_all_words_does(validated, drawn, naive):
    with database.connect(validated) as connection:
        summed = dict(database.query(
            connection, "SELECT document_id, sum(contribution) AS s FROM words "
            "WHERE model = 'bert' GROUP BY ALL", {}).read_all().to_pandas().values)
    differences, sums = [], []
    for document in drawn:
        ids, masked = (naive["bert"].changed(document["text"], words_of(document), some)
                       for some in ([], words_of(document)))
        margin, target = naive["bert"].margin(ids)
        differences.append(margin - naive["bert"].margin(masked, target)[0])
        sums.append(summed[document["document_id"]])
    off = np.abs(np.subtract(differences, sums)).sum() / np.abs(differences).sum()
    found = row(validated, model="bert", score="contribution", perturbation="masked")
    assert found["reconstruction"] == pytest.approx(1 - off, 1e-4)
    exact = row(validated, model="bert", score="deeplift", perturbation="masked")
    assert exact["reconstruction"] == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def yardsticks(validated, tmp_path_factory):
    """Baselines of the demo's BERT, and the documents drawn as the run's shards hold them."""
    plan, path = load(validated), tmp_path_factory.mktemp("drawn") / shards.name(0)
    shards.write(draw(validated, plan, SAMPLE, SEED), path)
    sample = open_scorer(validated, plan, "bert", devices("cpu")[0]).sample(path, lambda _: None)
    return open_baselines(plan.models["bert"], "cpu"), sample


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient_x_input"])
def test_gradients_are_those_of_autograd(yardsticks, drawn, naive, name):
    places, weights = np.polynomial.legendre.leggauss(STEPS)
    points = ([(1.0, 1.0)] if name == "gradient_x_input" else
              [*zip((places + 1) / 2, weights / 2, strict=True)])
    baselines, sample = yardsticks
    found = baselines.word_scores(name, sample.documents.pieces, sample.words, sample.target,
                                  steps=STEPS)
    expected = [naive["bert"].attributed(document["text"], words_of(document), points)
                for document in drawn]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-3, atol=1e-4)


def test_leaving_one_out_is_that_of_a_naive_loop_however_many_at_a_time(
    yardsticks, drawn, naive, monkeypatch
):
    baselines, sample = yardsticks
    expected = np.concatenate([naive["bert"].leave_one_out(document["text"], words_of(document))
                               for document in drawn])
    for at_once in (1, 700, 1 << 18):
        monkeypatch.setattr("clsight.baselines.AT_ONCE", at_once)
        found = baselines.word_scores("leave_one_out", sample.documents.pieces, sample.words,
                                      sample.target)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*FAST, *GENERAL])
def test_baselines_of_every_family_explain_its_margin(name):
    """Their margins are the model's, and integrated gradients add up to a difference of margins."""
    eager = eager_model(name)
    model = type(eager)(eager.config).eval().to(torch.float32).requires_grad_(False)
    model.load_state_dict(eager.state_dict())
    classifier = Classifier.of(model, None, MAX_LENGTH)
    classifier = replace(classifier, tokenizer=type("Masks", (), {"mask_token_id": MASK}))
    rng = np.random.default_rng(5)
    ids = [rng.integers(5, 600, n) for n in (7, 12, 7)]
    pieces = of_ids(ids)
    targets = np.array([int(margins_of(eager, one)[0].argmax()) for one in ids])
    baselines = Baselines(classifier, 2000)
    expected = [margins_of(eager, one, target)[1]
                for one, target in zip(ids, targets, strict=True)]
    np.testing.assert_allclose(baselines.margins(pieces, targets), expected, rtol=1e-4, atol=1e-4)
    found = baselines.piece_scores("integrated_gradients", pieces, targets, steps=400)
    masked = [margins_of(eager, np.where(special(one), one, MASK), target)[1]
              for one, target in zip(ids, targets, strict=True)]
    np.testing.assert_allclose(np.add.reduceat(found, pieces.offsets[:-1]),
                               np.subtract(expected, masked), rtol=0.03, atol=0.03)


def margins_of(model, ids, target=None):
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits
    return logits, float(margin_of(logits, target))


def special(ids):
    return np.isin(np.arange(len(ids)), (0, len(ids) - 1))


def of_ids(ids):
    """Pieces of documents, each piece but the first and the last a character long."""
    lengths = [len(one) for one in ids]
    start = np.concatenate([np.where(special(one), 0, np.arange(len(one))) for one in ids])
    end = np.concatenate([np.where(special(one), 0, np.arange(len(one)) + 1) for one in ids])
    return Pieces(np.concatenate(ids).astype(np.int32), start.astype(np.int32),
                  end.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]),
                  np.zeros(sum(lengths), np.int32), np.zeros(len(ids), np.bool_))


@given(st.data())
def test_changed_documents_are_those_of_a_naive_loop(data):
    lengths = data.draw(st.lists(st.integers(2, 6), min_size=1, max_size=4))
    ids = [np.arange(10 * i, 10 * i + n) for i, n in enumerate(lengths, 1)]
    copies = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=5))
    hits = [data.draw(st.lists(st.booleans(), min_size=lengths[i], max_size=lengths[i]))
            for i in copies]
    pieces = of_ids(ids)
    for remove in (False, True):
        found = perturbed(pieces, np.array(copies), np.concatenate(hits), 99, remove)
        expected = []
        for i, hit in zip(copies, hits, strict=True):
            kept = [(piece if not flag else 99) for piece, flag in zip(ids[i], hit, strict=True)
                    if not (remove and flag)]
            expected.append(kept or [99])
        assert [own.tolist() for own in np.split(found.ids, found.offsets[1:-1])] == expected


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.sampled_from([*FRACTIONS, *TENTHS]),
       st.integers(0, 9))
def test_the_top_of_each_document_are_its_highest_words(counts, fraction, seed):
    scores = np.random.default_rng(seed).integers(-3, 3, sum(counts)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    words = Words(offsets, *np.zeros((2, len(scores)), np.int32))
    highest = np.split(top(ranks(scores, words), words, fraction), offsets[1:-1])
    for own, flags in zip(np.split(scores, offsets[1:-1]), highest, strict=True):
        n = max(1, round(fraction * len(own)))
        order = sorted(range(len(own)), key=lambda i: (-own[i], i))
        assert np.flatnonzero(flags).tolist() == sorted(order[:n])


def measured(effects):
    """What was measured of scores "a", "b", .. [scores, n], the same for every measure."""
    names = tuple("abc"[: len(effects)])
    whole = np.broadcast_to(effects[:, None, None],
                            (len(effects), len(PERTURBATIONS), len(MEASURES), effects.shape[1]))
    one = np.ones(len(names))
    return Measured("m", names, (), np.ascontiguousarray(whole), one * np.nan, one, 0.5)


def test_intervals_are_those_of_a_bootstrap():
    values = np.random.default_rng(6).gamma(0.5, size=(1, 80))
    table = faithfulness.table(measured(values), 0, 50).to_pylist()[0]
    reference = stats.bootstrap(values, np.mean, n_resamples=20_000, method="percentile",
                                rng=np.random.default_rng(1)).confidence_interval
    width = reference.high - reference.low
    assert table["comprehensiveness"] == pytest.approx(values.mean())
    assert table["comprehensiveness_low"] == pytest.approx(reference.low, abs=width / 20)
    assert table["comprehensiveness_high"] == pytest.approx(reference.high, abs=width / 20)


def test_who_is_level_with_the_best_is_asked_document_by_document():
    rng = np.random.default_rng(7)
    noise, other = rng.normal(size=(2, 200))
    # A little less everywhere is less for sure, however far documents are apart.
    found = faithfulness.table(measured(np.stack([noise, noise - 0.01, other + noise.mean()
                                                  - other.mean() - 0.01])), 0, 50).to_pylist()
    level = {one["score"]: one["level_with_best"] for one in found}
    assert level == {"a": True, "b": False, "c": True}


def test_before_validate_there_is_nothing_and_afterwards_every_score(small_run, validated):
    assert rows(small_run.folder) == []
    found = rows(validated)
    expected = {(model, score, perturbation) for model in ("bert", "roberta")
                for score in (*SCORES, *BASELINES) for perturbation in PERTURBATIONS}
    assert {(one["model"], one["score"], one["perturbation"]) for one in found} == expected
    assert len(found) == len(expected)
    for one in found:
        assert (one["kind"] == "baseline") == (one["score"] in BASELINES)
        for measure in MEASURES:
            assert one[f"{measure}_low"] <= one[measure] <= one[f"{measure}_high"]


def test_scores_that_know_the_model_beat_random_words(validated):
    for model in ("bert", "roberta"):
        best, random = (row(validated, model=model, score=score, perturbation="masked")
                        for score in ("deeplift", "random"))
        assert best["comprehensiveness_low"] > random["comprehensiveness_high"]
        assert best["sufficiency_high"] < random["sufficiency_low"]


def test_the_sample_does_not_depend_on_shards(small_run, reviews, tmp_path):
    other = run(reviews, tmp_path / "run", shard_size=100)
    one, another = (draw(folder, load(folder), 50, 9) for folder in (small_run.folder,
                                                                    other.folder))
    assert one["text"].equals(another["text"])
    rows = one["row"].to_pylist()
    assert rows == sorted(set(rows))
    assert len(rows) == 50
    assert len(draw(small_run.folder, load(small_run.folder), 10**6, 9)) == 600


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(validated, tmp_path):
    folder, before = shutil.copytree(validated, tmp_path / "run"), rows(validated)
    timed = pl.col("seconds", "passes")
    for seed, same in ((SEED, True), (SEED + 1, False)):
        validate(folder, sample=SAMPLE, seed=seed, steps=STEPS, models=("bert",))
        own, other = (pl.DataFrame(some).filter(model="bert").sort("score", "perturbation").drop(
            timed) for some in (rows(folder), before))
        assert own.equals(other) is same
    # The other model's stay.
    assert [one for one in rows(folder) if one["model"] == "roberta"] == [
        one for one in before if one["model"] == "roberta"]


def test_what_validate_left_is_verified_and_outlives_the_database(validated, reviews, tmp_path):
    folder, before = shutil.copytree(validated, tmp_path / "run"), rows(validated)
    assert verify(folder) == []
    (folder / "clsight.duckdb").unlink()
    run(reviews, folder)
    assert rows(folder) == before
    flipped(folder / "bert" / faithfulness.FILE)
    assert [problem.file for problem in verify(folder)] == [f"bert/{faithfulness.FILE}"]


def test_what_was_measured_of_another_model_is_not_read(validated, tmp_path):
    folder = shutil.copytree(validated, tmp_path / "run")
    shutil.copy(folder / "roberta" / faithfulness.FILE, folder / "bert" / faithfulness.FILE)
    assert {one["model"] for one in faithfulness.read(folder, load(folder)).to_pylist()} == {
        "roberta"}
    (problem,) = verify(folder)
    assert "clsight validate measures again" in problem.what


def test_the_command_says_which_score_to_trust(small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    result = CliRunner().invoke(cli, ["validate", str(folder), "--sample", "16", "--model", "bert",
                                      "--steps", "3", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert len(answer["faithfulness"]) == len((*SCORES, *BASELINES)) * 2
    assert answer["verdict"][0].startswith("bert: trust ")


def test_a_run_without_the_score_to_trust_hears_of_it(small_run, tmp_path):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    said = CliRunner().invoke(cli, ["validate", str(folder), "--sample", "16", "--model", "bert",
                                    "--steps", "3"]).stdout
    (best,) = faithfulness.best_scores(rows(folder))
    highest = max((one for one in rows(folder) if one["kind"] == "score"
                   and one["perturbation"] == "masked"), key=lambda one: one["comprehensiveness"])
    assert best == highest["score"] == "deeplift"
    assert "this run has no deeplift: one that has it is made with --scores default," in said


def test_what_cannot_be_measured_is_said(small_run, validated, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no model 'other'"):
        validate(validated, models=("other",))
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    (folder / "bert" / "attention" / "00000.parquet").unlink()
    (folder / "clsight.duckdb").unlink()
    with pytest.raises(UsageError, match="is not complete"):
        validate(folder)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r"pip install \"clsight\[validate\]\""):
        validate(validated)


def scored(score, comprehensiveness, **values):
    return {"model": "m", "score": score, "kind": "score", "perturbation": "masked",
            "n_documents": 500, "comprehensiveness": comprehensiveness,
            "comprehensiveness_low": comprehensiveness - 0.02,
            "comprehensiveness_high": comprehensiveness + 0.02, "level_with_best": False,
            "passes": 1.0, **values}


BEST = scored("deeplift", 0.4, passes=3.0, level_with_best=True)
OTHERS = [scored("integrated_gradients", 0.38, kind="baseline", passes=150.0),
          scored("random", 0.05, kind="baseline"), scored("uniform", 0.1)]


@pytest.mark.parametrize(("rows", "sentence"), [
    ([BEST, *OTHERS],
     "m: trust deeplift: masking its words takes 0.400 (0.38 to 0.42) from the probability, more "
     "than integrated gradients (0.380), which costs 50 times as much; uniform takes 0.100"),
    ([BEST, scored("contribution", 0.39, level_with_best=True), *OTHERS],
     "m: trust deeplift: masking its words takes 0.400 (0.38 to 0.42) from the probability, more "
     "than integrated gradients (0.380), which costs 50 times as much; contribution is level with "
     "it at 1.0 forward passes instead of 3.0; uniform takes 0.100"),
    ([BEST, *OTHERS[:1], {**OTHERS[1], "level_with_best": True}],
     "m: no score finds words that matter more than random ones (0.400 (0.38 to 0.42) of the "
     "probability by deeplift, on 500 documents); take a larger --sample"),
], ids=["clear", "a cheaper one", "nothing"])
def test_a_sentence_says_which_score_to_trust(rows, sentence):
    assert verdict(rows) == [sentence]
