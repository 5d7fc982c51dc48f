"""The view of a document: its text to the character, words shaded by what the run says of them."""

import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsight import pipeline
from clsight.document_view import NEGATIVE, POSITIVE, STRONGEST, Document, shades
from clsight.errors import UsageError
from clsight.words import segment
from conftest import demo_models

HOSTILE = [
    "<script>alert('x')</script> is </p> not </mark> a film",
    "\"quoted\" 'twice' &amp; &lt;b&gt; & <b onmouseover=\"x\">bold",
    "😀 👨‍👩‍👧 emoji, שלום עולם! مرحبا \u202eevil, e\u0301a\u0308 ﬁ İ ß",
    "  {{ 7 * 7 }} {% raw %}  two  spaces,\n\nlines\tand tabs ",
    "$x^2$ <!-- comment --> ]]> %s {0} \\n",
]


class View(HTMLParser):
    """Texts of a view, one per model and text; and every tag and marked word in it."""

    def __init__(self, html):
        super().__init__()
        self.texts, self.marks, self.tags, self.said, self.inside = [], [], set(), "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given)
        if given.get("class") == "clsight-text":
            self.inside = True
            self.texts.append("")
        if tag == "mark":
            self.marks.append(given)

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "p"

    def handle_data(self, data):
        self.said += data
        if self.inside:
            self.texts[-1] += data


def document_of(*texts, models=("bert",), seed=1, **fields):
    """A document that was in no run, with random scores."""
    random, rows = np.random.default_rng(seed), []
    for model in models:
        for i, text in enumerate(texts):
            words = segment(pa.array([text]))
            spans = zip(*(side[0].as_py() for side in (words.form, words.start, words.end)),
                        strict=True)
            rows += [{"model": model, "form": form, "segment": i, "start_char": start,
                      "end_char": end, "uniform": random.random(),
                      "contribution": random.normal()} for form, start, end in spans]
    words = pl.DataFrame(rows).with_columns(position=pl.int_range(pl.len()).over("model"))
    predictions = pl.DataFrame([
        {"model": model, "predicted": 1, "confidence": 0.9, "margin": 1.0, "correct": False,
         "truncated": False, "problem": None} for model in models])
    return Document(**{"document_id": 7, "label": 0, "texts": texts, "predictions": predictions,
                       "words": words, "target": "predicted", "score": "contribution", **fields})


def alpha(style):
    """Signed opacity of a style."""
    colour, opacity = re.search(r"background:rgba\((\d+,\d+,\d+),([\d.]+)\)", style).groups()
    return {POSITIVE: 1, NEGATIVE: -1}[colour] * float(opacity)


@pytest.mark.parametrize("score", ["uniform", "contribution", "projected"])
def test_words_are_shaded_by_what_the_run_says(small_run, score):
    found = small_run.document(11)
    view = View(found.show(score)._repr_html_())
    text = small_run.sql("SELECT text FROM documents WHERE document_id = 11").item()
    assert view.texts == [text, text]
    expected = []
    for model in ("bert", "roberta"):
        stored = small_run.sql(f"SELECT start_char, end_char, {score} FROM words WHERE "
                               f"model = '{model}' AND document_id = 11 ORDER BY position").rows()
        largest = max(abs(value) for *_, value in stored)
        expected += [(value, value / largest) for *_, value in stored]
    assert len(view.marks) == len(expected)
    for mark, (value, share) in zip(view.marks, expected, strict=True):
        named, said = mark["title"].split()
        assert named == score
        assert float(said) == pytest.approx(value, rel=1e-5)
        assert alpha(mark["style"]) == pytest.approx(STRONGEST * share, abs=6e-4)
        assert ("dotted" in mark["style"]) == (share < 0)


def test_answers_are_the_runs(small_run):
    found = small_run.document("11")
    stored = small_run.sql("FROM predictions WHERE document_id = 11")
    said = View(found._repr_html_()).said
    assert f"gold {stored['label'][0]}" in said
    for row in stored.iter_rows(named=True):
        verdict = "right" if row["correct"] else "wrong"
        one = f"predicted {row['predicted']} ({row['confidence']:.0%}), {verdict}"
        assert f"{row['model']}: {one}" in said
        assert f"{row['model']}: {one}" in repr(found)
    assert [*found.predictions["model"]] == ["bert", "roberta"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_text(text):
    view = View(document_of(text, models=("bert", "roberta"), label="<b>")._repr_html_())
    assert view.texts == [text, text]
    assert view.tags <= {"figure", "figcaption", "b", "div", "p", "bdi", "mark", "span", "br"}
    assert "gold <b>" in view.said


def test_all_hostile_texts_as_a_pair_of_one_run(tmp_path):
    fill = [f"a fine film number {i}, not bad at all" for i in range(40)]
    texts = [*HOSTILE, "", *fill]
    pq.write_table(pa.table({
        "id": [f"d/{i}'\"<" for i in range(len(texts))], "text": texts,
        "pair": [f"{text} again" for text in texts], "label": [i % 2 for i in range(len(texts))],
    }), tmp_path / "d.parquet")
    run = pipeline.run(
        str(tmp_path / "d.parquet"), text="text", text_pair="pair", id="id", label="label",
        models={"roberta": demo_models()["roberta"]}, output=tmp_path / "run", on_bad_row="skip",
        dtype="float32")
    for i, text in enumerate(HOSTILE):
        found = run.document(f"d/{i}'\"<")
        assert found.texts == (text, f"{text} again")
        assert View(found._repr_html_()).texts == [text, f"{text} again"]
        assert found.words_of("roberta")["segment"].max() == 1
    with pytest.raises(UsageError, match="was left out: text is empty"):
        run.document(f"d/{len(HOSTILE)}'\"<")
    figure = run.heatmap("d/0'\"<", words=True)
    assert len(figure.axes[0].get_xticklabels()) == found_words(run, 0) + 2


def found_words(run, row):
    return run.sql('SELECT n_words FROM documents WHERE "row" = $row::BIGINT', row=row).item()


def test_a_model_without_an_answer_says_why():
    found = document_of("a film", models=("bert",))
    failed = {"model": "roberta", "problem": "logits are not <finite>"}
    found = document_of("a film", predictions=pl.concat(
        [found.predictions, pl.DataFrame([failed])], how="diagonal_relaxed"))
    view = View(found._repr_html_())
    assert view.texts == ["a film"]
    assert "roberta: no answer, logits are not <finite>" in view.said
    assert "roberta: no answer" in repr(found)


def test_other_scores_are_chosen_by_name():
    found = document_of("not a good film")
    assert found.show("uniform").score == "uniform"
    assert found.score == "contribution"
    assert "away from" in View(found._repr_html_()).said
    assert "away from" not in View(found.show("uniform")._repr_html_()).said
    with pytest.raises(UsageError, match="no score 'norm'; this run has uniform and contribution"):
        found.show("norm")


def test_the_explained_class_is_named():
    for target, said in (("predicted", "toward the predicted class"),
                         ("gold", "toward the gold label"), ("pos", "toward the class pos")):
        assert said in View(document_of("a film", target=target)._repr_html_()).said


def test_plain_text_moves_no_cursor():
    said = repr(document_of("\x1b[31mred\x07 film"))
    assert "film" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(("values", "expected"), [
    ([1, -2, 4], [0.25, -0.5, 1]),
    ([-3, 1.5], [-1, 0.5]),
    ([0, 0], [0, 0]),
    ([], []),
    ([1e-300, -1e-300], [1, -1]),
])
def test_shades_are_shares_of_the_largest(values, expected):
    np.testing.assert_allclose(shades(values), expected)


@pytest.mark.parametrize("colour", [POSITIVE, NEGATIVE])
@pytest.mark.parametrize(("page", "text"), [(255, 33), (17, 224)], ids=["light", "dark"])
def test_text_can_be_read_on_the_strongest_shade(colour, page, text):
    """WCAG's contrast of at least 4.5, on a white and on a black notebook."""
    behind = [STRONGEST * int(part) + (1 - STRONGEST) * page for part in colour.split(",")]
    high, low = sorted(map(luminance, (behind, [text] * 3)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (part / 255 for part in colour)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)
