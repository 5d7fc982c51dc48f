"""Models and slices compared: against brute force over documents, on real small runs."""

import itertools

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import scipy.stats

from clsight import comparisons, pipeline
from clsight.replicates import Strata
from conftest import demo_models
from masses_of import moments, random_case, sparse
from reference import statistic


def test_moments_of_masses_are_those_of_the_formulas():
    dense, strata = random_case(n=400, units=7, seed=3)
    dense[:, 3] *= -1
    got, expected = comparisons.moments(sparse(dense), strata), moments(dense, strata)
    for name in ("n_documents", "n_errors", "total", "in_errors", "excess", "expected", "variance",
                 "third"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-9,
                                   atol=1e-12, err_msg=name)


def test_moments_of_units_that_no_document_holds():
    dense, strata = random_case(n=50, units=4)
    dense[:, [0, 2]] = 0
    got = comparisons.moments(sparse(dense), strata)
    assert got.n_documents[[0, 2]].tolist() == [0, 0]
    assert np.isnan(got.z[..., [0, 2]]).all()
    np.testing.assert_allclose(got.z[..., 1], moments(dense, strata).z[..., 1])


def test_a_part_has_its_own_documents_strata_and_masses():
    dense, strata = random_case(n=300, units=5, seed=1)
    chosen = np.random.default_rng(0).random(300) < 0.4
    part = comparisons.part("some", chosen, strata, 0, 1000)
    own, mass = part.permutations.strata, part.mass(sparse(dense))
    np.testing.assert_array_equal(own.rows, strata.rows[chosen])
    np.testing.assert_array_equal(own.error, strata.error[chosen])
    for mine, theirs in zip(own.stratum, strata.stratum, strict=True):
        together = set(zip(mine, theirs[chosen], strict=True))
        assert len(together) == len({a for a, _ in together}) == len({b for _, b in together})
    back = np.zeros((2, 5, chosen.sum()))
    for unit in range(5):
        entries = slice(mass.offsets[unit], mass.offsets[unit + 1])
        back[:, unit, mass.document[entries]] = mass.x[:, entries]
    np.testing.assert_array_equal(back, dense[..., chosen])
    nobody = comparisons.part("none", np.zeros(300, bool), strata, 0, 1000)
    assert nobody.mass(sparse(dense)).offsets.tolist() == [0] * 6


@pytest.mark.parametrize(("n", "expected"), [(5, 1), (45, 2), (1000, 10)])
def test_bins_are_ranges_of_the_value_with_documents_enough(n, expected):
    rng = np.random.default_rng(0)
    label, value = np.arange(2 * n) % 2, rng.normal(size=2 * n)
    stratum = comparisons.bins(label, value)
    assert len(np.unique(stratum)) == 2 * expected
    for own in (0, 1):
        edges = sorted((value[(stratum == s) & (label == own)].min(),
                        value[(stratum == s) & (label == own)].max())
                       for s in np.unique(stratum[label == own]))
        assert all(before[1] < after[0] for before, after in itertools.pairwise(edges))


def test_agreement_of_parts_is_cochrans_q():
    rng = np.random.default_rng(0)
    parts = [random_case(n=500, units=200, seed=seed) for seed in range(3)]
    made = []
    for dense, strata in parts:
        alone = Strata(strata.rows, strata.stratum, rng.random(500) < 0.3)
        made.append(moments(dense[:, 50:], alone))
    q, p = comparisons.agreement(made, 1)
    # Without any effect Q is chi-squared.
    assert scipy.stats.kstest(p.ravel(), "uniform").pvalue > 1e-3
    effect = np.array([own.excess[0] / own.expected[0] for own in made])
    weight = np.array([own.expected[0] ** 2 / own.variance[0] for own in made])
    mean = (weight * effect).sum(0) / weight.sum(0)
    np.testing.assert_allclose(q, (weight * (effect - mean) ** 2).sum(0))
    np.testing.assert_allclose(p, scipy.stats.chi2.sf(q, 2))
    few = comparisons.agreement(made, 10_000)
    assert np.isnan(few[0]).all()


def masses(run, model, score):
    """document row -> form -> mass, by the SQL of word_mass."""
    found = {}
    for row, form, x in run.sql(
        f"SELECT \"row\", form, {score} FROM word_mass WHERE model = '{model}'"
    ).rows():
        found.setdefault(row, {})[form] = x
    return found


def test_model_differences_are_those_of_the_documents(small_run):
    predictions = small_run.sql("predictions").sort("row")
    own, other = (predictions.filter(model=m) for m in ("bert", "roberta"))
    errors = [(~p["correct"]).to_numpy() for p in (own, other)]
    x, y = (masses(small_run, m, "contribution") for m in ("bert", "roberta"))
    differ = errors[0] != errors[1]
    label = own["label"].to_numpy()[differ]
    certainty = (own["confidence"] - other["confidence"]).to_numpy()[differ]
    stratum = comparisons.bins(label, certainty)
    got = small_run.sql("SELECT * FROM model_differences WHERE score = 'contribution'")
    both_orders = got.filter(model="bert"), got.filter(model="roberta")
    assert len(both_orders[0]) == len(both_orders[1])
    statistics = small_run.sql("SELECT * FROM word_statistics WHERE score = 'contribution'")
    for row in both_orders[0].rows(named=True):
        form = row["form"]
        holds = np.array([form in x[i] for i in own["row"]])
        assert row["n_both_errors"] == (holds & errors[0] & errors[1]).sum()
        assert row["n_discordant"] == (holds & differ).sum()
        assert row["n_wrong"] == (holds & differ & errors[0]).sum()
        gap = np.array([x[i].get(form, 0) - y[i].get(form, 0) for i in own["row"]])[differ]
        wrong, held = errors[0][differ], holds[differ]
        if (held & wrong).any():
            assert row["gap_wrong"] == pytest.approx(gap[held & wrong].mean(), abs=1e-12)
        t, v = statistic(gap, wrong, stratum)
        if row["n_discordant"] >= 20:
            assert row["z_paired"] == pytest.approx(t / np.sqrt(v), rel=1e-6)
            assert row["p_paired"] <= 1
        else:
            assert row["z_paired"] is None
            assert row["q_paired"] is None
        for model, name in (("bert", "adjusted_ratio"), ("roberta", "other_adjusted_ratio")):
            mine = statistics.filter(model=model, form=form)
            assert row[name] == pytest.approx(mine["adjusted_ratio"].item())


def test_the_other_order_of_two_models_says_the_same(small_run):
    got = small_run.sql("model_differences")
    one = got.filter(model="bert").sort("score", "form")
    other = got.filter(model="roberta").sort("score", "form")
    for same in ("form", "n_both_errors", "p_difference", "q_difference", "z_paired", "q_paired"):
        assert one[same].equals(other[same], null_equal=True)
    assert (one["n_wrong"] + other["n_wrong"]).equals(one["n_discordant"])
    assert one["gap_wrong"].equals((-other["gap_right"]).alias("gap_wrong"), null_equal=True)
    assert one["adjusted_ratio"].equals(other["other_adjusted_ratio"].alias("adjusted_ratio"))


def test_shared_and_own_habits_of_two_models(small_run):
    """Both demo models learnt both short cuts."""
    statistics = small_run.sql("word_statistics")
    by_model = {m: statistics.filter(model=m).sort("score", "form") for m in ("bert", "roberta")}
    shared = small_run.sql("shared_over_attended")
    for score in ("uniform", "contribution"):
        one, other = (by_model[m].filter(score=score) for m in ("bert", "roberta"))
        p = np.maximum(one["p"].to_numpy(), other["p"].to_numpy())
        q = scipy.stats.false_discovery_control(p)
        passed = q <= 0.05
        for own in (one, other):
            passed &= ((own["lift"] > 1) & (own["consistency"] >= 0.95)
                       & (own["mass_ratio"].fill_null(float("inf")) >= 1.2)).to_numpy()
        assert shared.filter(score=score)["form"].sort().to_list() == (
            one["form"].to_numpy()[passed].tolist())
    assert "matinee" in set(shared["form"])
    over = {(m, s, f) for m, s, f in small_run.sql("over_attended").select(
        "model", "score", "form").rows()}
    for row in small_run.sql("only_over_attended").rows(named=True):
        assert (row["model"], row["score"], row["form"]) in over
        assert (row["other"], row["score"], row["form"]) not in over
        assert row["z_difference"] > 0
        assert row["q_difference"] <= 0.05


def test_heterogeneity_of_two_models_is_their_difference(small_run):
    between = small_run.sql("model_differences").filter(model="bert").sort("score", "form")
    got = small_run.sql("heterogeneity").sort("score", "form")
    np.testing.assert_allclose(got["chi_squared"].to_numpy(), between["z_difference"].to_numpy()**2)
    np.testing.assert_allclose(got["p"].to_numpy(), between["p_difference"].to_numpy())


@pytest.fixture(scope="module")
def sliced_run(reviews, tmp_path_factory):
    """The generated reviews with a column of three sources, one of them small."""
    folder = tmp_path_factory.mktemp("sliced")
    table = pq.read_table(reviews)
    source = ["few" if i % 20 == 0 else "north" if i % 3 else "south" for i in range(len(table))]
    pq.write_table(table.append_column("source", [source]), folder / "data.parquet")
    return pipeline.run(
        str(folder / "data.parquet"), text="text", label="label", models=demo_models(),
        dtype="float32", output=folder / "run", group_by="source",
        options=pipeline.Options(min_documents=20))


def test_slices_are_tested_by_themselves(sliced_run):
    strata = sliced_run.sql("strata").filter(model="bert").sort("row")
    x = masses(sliced_run, "bert", "contribution")
    got = sliced_run.sql("slice_statistics").filter(model="bert", score="contribution")
    assert set(got["slice"]) <= {"few", "north", "south"}
    assert got["n_documents"].min() >= 20
    for (value,), group in got.group_by("slice"):
        inside = strata.filter(slice=value)
        by_reference = [inside.filter(reference=name) for name in ("predicted", "label")]
        rows, error = by_reference[0]["row"], by_reference[0]["error"].to_numpy()
        for row in group.rows(named=True):
            own = np.array([x[i].get(row["form"], 0) for i in rows])
            assert row["n_documents"] == sum(row["form"] in x[i] for i in rows)
            assert row["mass_ratio"] is None or row["mass_ratio"] == pytest.approx(
                own[error].mean() / own[~error].mean())
            z = [t / np.sqrt(v) if v > 0 else np.nan for t, v in (
                statistic(own, error, part["stratum"].to_numpy()) for part in by_reference)]
            if row["z"] is not None:
                weaker = min(z) if min(z) > 0 else max(z) if max(z) < 0 else 0
                assert row["z"] == pytest.approx(weaker, abs=1e-6)


def test_no_stratum_spans_slices(sliced_run):
    strata = sliced_run.sql("strata")
    assert strata.group_by("model", "reference", "stratum").agg(
        pl.col("slice").n_unique()
    )["slice"].max() == 1


def test_what_holds_in_all_slices_is_said(sliced_run):
    agreement = sliced_run.sql("slice_agreement")
    tested = sliced_run.sql("slice_statistics")
    assert len(agreement)
    for row in agreement.rows(named=True):
        own = tested.filter(**{key: row[key] for key in ("model", "score", "kind", "form")})
        assert row["slices"] == len(own)
        if len(own) < 2:
            assert row["verdict"].startswith("cannot be said")
        elif row["p_heterogeneity"] > 0.05 and row["same_direction"] == len(own):
            assert row["verdict"] == f"holds in all {len(own)} slices"
