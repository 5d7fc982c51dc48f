"""A run folder as a notebook sees it: tables by name, pictures, a summary; and no torch."""

import subprocess
import sys
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

import clsight
from clsight import pipeline, report
from clsight.errors import UsageError
from clsight.run_folder import Run
from conftest import demo_models


def test_one_class_under_all_its_names(small_run):
    assert clsight.Run is pipeline.Run is Run
    assert isinstance(small_run, Run)
    assert clsight.open(str(small_run.folder)) == small_run


def test_opening_and_reading_loads_no_torch(small_run):
    script = f"""
import sys, clsight
run = clsight.open({str(small_run.folder)!r})
run.over_attended(), run.document(3)._repr_html_(), run._repr_html_(), repr(run)
print([name for name in ("torch", "transformers", "matplotlib", "numba") if name in sys.modules])
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            check=False)
    assert (answer.stdout.strip(), answer.returncode) == ("[]", 0), answer.stderr


@pytest.mark.parametrize("relation", ["over_attended", "neglected", "word_statistics"])
def test_relations_by_name(small_run, relation):
    rows = getattr(small_run, relation)
    whole = small_run.sql(relation)
    assert rows().sort(*KEYS).equals(whole.sort(*KEYS))
    of_one = rows(model="bert", score="uniform")
    assert of_one.sort(*KEYS).equals(
        small_run.sql(f"FROM {relation} WHERE model = 'bert' AND score = 'uniform'").sort(*KEYS))
    strength = of_one.filter(kind="word")["z"].drop_nulls()
    assert strength.is_sorted(descending=True)


KEYS = ("model", "score", "kind", "form")


def test_the_planted_words_are_found(small_run):
    assert {"seminar", "matinee"} <= {*small_run.over_attended("roberta")["form"]}


@pytest.mark.parametrize(("given", "message"), [
    ({"model": "gpt"}, "no model 'gpt'; it has bert and roberta"),
    ({"score": "norm"}, "no score 'norm'; it has uniform, classifier, projected and contribution"),
])
def test_a_misspelt_name_is_no_empty_table(small_run, given, message):
    with pytest.raises(UsageError, match=message):
        small_run.over_attended(**given)


def test_heatmaps_are_figures_of_all_models_or_some(small_run):
    figure = small_run.heatmap(5)
    assert isinstance(figure, Figure)
    assert [ax.get_title().split(":")[0] for ax in figure.axes[:2]] == ["bert", "roberta"]
    assert small_run.heatmap(5, "roberta").axes[0].get_title().startswith("roberta")
    assert small_run.heatmap(5, ["roberta", "bert"]).axes[0].get_title().startswith("roberta")


class Cells(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.cells, self.said = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        self.said += data
        if self.lasttag == "td" and self.cells and not data.isspace():
            self.cells[-1] += data


def test_a_notebook_shows_the_summary(small_run):
    cells = Cells(small_run._repr_html_()).cells
    summary = small_run.sql("summary")
    assert cells == ["" if value is None else str(value) for row in summary.rows() for value in row]


def test_a_run_that_is_not_complete_says_so(small_run, tmp_path):
    folder = tmp_path / "<i>run"
    small_run.plan.save(folder)
    begun = clsight.open(folder)
    html = begun._repr_html_()
    assert "<i>" not in html
    assert "let clsight run finish first" in Cells(html).said
    assert repr(begun) == f"<clsight.Run {folder}: bert and roberta; 600 rows>"
    with pytest.raises(UsageError, match="let clsight run finish first"):
        begun.document(3)


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UsageError, match="is not a clsight run"):
        clsight.open(tmp_path)


def test_the_most_faithful_score_of_a_run_is_shown_first(small_run, reviews, tmp_path):
    faithful = pipeline.run(str(reviews), text="text", label="label", output=tmp_path / "run",
                            models={"bert": demo_models()["bert"]}, scores="default,deeplift",
                            options=pipeline.Options(min_documents=20))
    assert faithful.plan.scores == ("uniform", "classifier", "projected", "contribution",
                                    "deeplift")
    for run, score in ((faithful, "deeplift"), (small_run, "contribution")):
        assert run.document(3).score == score
        shown, named = (run.charts.words("bert", *given).layer[-1].data for given in ((), (score,)))
        assert shown.equals(named)
        report.write(run.folder, tmp_path / "report.html")
        assert f"<option selected>{score}</option>" in (tmp_path / "report.html").read_text()
