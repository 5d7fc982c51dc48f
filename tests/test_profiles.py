"""What heads look at and how scores agree, against plain NumPy and SciPy over the same run."""

from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from clsight import tables
from clsight.profiles import _rank, _rank_sorted, write_agreement
from clsight.words import segment


def attention_of(run, model):
    names = run.plan.shard_names()
    parts = [pq.read_table(run.folder / model / "attention" / name) for name in names]
    return pa.concat_tables(parts).to_pylist()


@cache
def punctuation(text):
    """Characters of a text that lie in words without a letter or digit."""
    found = segment(pa.array([text]))
    bounds = zip(found.start[0].as_py(), found.end[0].as_py(), strict=True)
    # An apostrophe within a word is no punctuation: what counts is the word.
    return {i for s, e in bounds if not any(c.isalnum() for c in text[s:e]) for i in range(s, e)}


@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_head_profiles_are_means_over_documents(small_run, model):
    texts = small_run.sql("SELECT text, label FROM documents ORDER BY document_id")
    means = {True: [], False: []}
    for document, (text, label) in zip(attention_of(small_run, model), texts.rows(), strict=True):
        rows = np.array(document["attention"]).reshape(2, 4, -1)
        spans = list(zip(document["start"], document["end"], strict=True))
        special = np.array([start == end for start, end in spans])
        cls = np.arange(len(spans)) == 0
        marks = np.array([
            start < end and {i for i in range(start, end) if not text[i].isspace()}
            <= punctuation(text) for start, end in spans
        ])
        means[document["predicted"] == label].append([
            -(rows * np.log(np.maximum(rows, 1e-300))).sum(-1), rows[..., cls].sum(-1),
            rows[..., special & ~cls].sum(-1), rows[..., marks].sum(-1),
        ])
    profile = small_run.sql(f"FROM head_profile WHERE model = '{model}' ORDER BY layer, head")
    assert profile["n_errors"].unique().to_list() == [len(means[False])]
    kinds = ("entropy", "on_cls", "on_separators", "on_punctuation")
    for suffix, chosen in (("", [*means[True], *means[False]]), ("_errors", means[False]),
                           ("_correct", means[True])):
        expected = np.mean(chosen, axis=0).reshape(4, -1)
        for kind, values in zip(kinds, expected, strict=True):
            np.testing.assert_allclose(profile[kind + suffix], values, rtol=1e-5, atol=1e-8)


def test_weights_in_profiles_are_those_of_the_target_and_sum_to_one(small_run):
    sums = small_run.sql(
        "SELECT model, layer, sum(classifier_weight) AS c, sum(projected_weight) AS p "
        "FROM head_profile GROUP BY ALL ORDER BY ALL"
    )
    last = sums.filter(layer=1)
    np.testing.assert_allclose(last["c"], 1, rtol=1e-6)
    np.testing.assert_allclose(last["p"], 1, rtol=1e-6)
    assert sums.filter(layer=0)["c"].null_count() == 2


def test_agreement_is_that_of_scipy_over_all_shards(small_run):
    words = small_run.sql("FROM words ORDER BY model, document_id, position")
    margins = small_run.sql("SELECT model, document_id, target_margin FROM predictions "
                            "ORDER BY model, document_id")
    compared = small_run.sql("FROM compare_scores")
    for row in compared.iter_rows(named=True):
        own = words.filter(model=row["model"]).partition_by("document_id", maintain_order=True)
        pairs = [(d[row["score"]].to_numpy(), d[row["other"]].to_numpy()) for d in own]
        rho = [spearmanr(a, b).statistic for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
        shared = [
            len({*np.argsort(-a, kind="stable")[:5]} & {*np.argsort(-b, kind="stable")[:5]}) / 5
            for a, b in pairs if len(a) > 5
        ]
        r = pearsonr([a.astype(float).sum() for a, _ in pairs],
                     margins.filter(model=row["model"])["target_margin"]).statistic
        assert row["rank_correlation"] == pytest.approx(np.mean(rho), rel=1e-6)
        assert row["top5_shared"] == pytest.approx(np.mean(shared), rel=1e-6)
        assert row["margin_explained"] == pytest.approx(r * r, rel=1e-5, abs=1e-9)


def test_equal_scores_share_their_rank(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (2, 30)).astype(np.float32)
    write_agreement(tmp_path / "a.parquet", "m", ("uniform", "norm"), scores,
                    np.array([0, 30], np.int32), np.array([1.0]))
    stored = pq.read_table(tmp_path / "a.parquet")
    assert stored.schema.equals(tables.agreement())
    a, b = (rankdata(-values) for values in scores)
    assert stored["rank_correlation"][1].as_py() == pytest.approx(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 500])
def test_ranks_by_sorting_are_those_by_counting(n):
    values = np.random.default_rng(n).integers(0, 40, n).astype(np.float32) / 8
    counted, sorted_ = ((np.empty(n, np.int32), np.empty(n, np.int32)) for _ in range(2))
    _rank(values, *counted)
    _rank_sorted(values, *sorted_)
    np.testing.assert_array_equal(counted, sorted_)
