"""Charts as objects: their rows are those of the relations, and a real renderer draws them."""

import polars
import pytest

from clsight.errors import UsageError
from clsight.gallery import Charts

NAMES = {"calibration": {}, "confusion": {"model": "bert"}, "words": {"model": "bert"},
         "habits": {}, "agreement": {"model": "bert"}, "explained": {"model": "bert"},
         "head_weights": {"model": "bert"}, "attention": {"model": "bert"}}


@pytest.mark.parametrize("name", NAMES)
def test_charts_are_drawn(small_run, tmp_path, name):
    chart = getattr(Charts(small_run), name)(**NAMES[name])
    chart.save(tmp_path / "chart.svg")
    drawn = (tmp_path / "chart.svg").read_text()
    assert drawn.startswith("<svg")
    assert drawn.count("<path") > 5


def test_words_are_the_models_by_one_score(small_run):
    rows = Charts(small_run).words("roberta", "uniform").layer[-1].data
    expected = small_run.sql("FROM word_statistics WHERE model = 'roberta' AND score = 'uniform'")
    assert {*rows["form"]} == {*expected["form"]}
    found = rows.filter(rows["finding"] == "over-attended")["form"]
    assert {*found} == {*small_run.sql("FROM over_attended WHERE model = 'roberta' AND "
                                       "score = 'uniform'")["form"]}


def test_shares_of_attention_add_up(small_run):
    rows = Charts(small_run).attention("bert").data
    whole = rows.group_by("layer", "head").agg(polars.col("share").sum())
    assert all(abs(share - 1) < 1e-9 for share in whole["share"])


def test_what_is_not_there_is_named(small_run):
    with pytest.raises(UsageError, match="no model 'albert'; it has bert and roberta"):
        Charts(small_run).words("albert")
    with pytest.raises(UsageError, match="no score 'rollout'"):
        Charts(small_run).words("bert", "rollout")
