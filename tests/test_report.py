"""The report in a real Chromium, from a file: against the run's relations, by mouse and by keys."""

import itertools
import json
import math
import re
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import expect, sync_playwright

import clsight
from browsers import chromium, opened
from clsight import database, pipeline, report
from clsight.cli import cli
from clsight.report import documents
from conftest import demo_models, real_reviews, shared
from serving import serving
from test_families import PAIRS, TEXTS, saved

HOSTILE = [
    "<script>alert('text')</script> is a film", "a \"quoted\" 'film' & <b>bold</b> &amp; more",
    "</script><img src=x onerror=alert(1)> dull", "<!-- a comment --> of the film",
    "مرحبا بالعالم a film", "👩‍👩‍👧 cafe\u0301 film", "${alert(1)} `film` {{ 7 * 7 }}",
    "a\tfilm\nof two lines",
]


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def written(run, folder):
    path = folder / "report.html"
    report.write(run.folder, path)
    return path.as_uri()


@pytest.fixture(scope="module")
def demo(validated, tmp_path_factory):
    """The report of generated reviews, which holds all of them."""
    return written(clsight.open(validated), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The report of real reviews and classifiers."""
    folder = tmp_path_factory.mktemp("real")
    pq.write_table(real_reviews(800), folder / "reviews.parquet")
    run = pipeline.run(
        str(folder / "reviews.parquet"), text="text", label="label", output=folder / "run",
        models={name: str(shared("models", f"{name}-rt")) for name in ("bert", "roberta")},
        options=pipeline.Options(min_documents=20))
    return run, written(run, folder)


def choose(page, **values):
    for name, value in values.items():
        if name == "word":
            page.fill("#word", value)
            page.press("#word", "Enter")
        else:
            page.select_option(f"#{name}", value)
    page.wait_for_timeout(30)


def listed(page):
    """Ids of the documents in the list, all pages of it."""
    while page.locator("#more").is_visible():
        page.click("#more")
        page.wait_for_timeout(20)
    titles = page.locator("article h3").all_text_contents()
    return [re.match(r"Document (.*), gold label", title)[1] for title in titles]


def table(page):
    """Rows of the table of words, as they are shown."""
    return [row.split("\t") for row in page.locator("#words tbody").inner_text().split("\n") if row]


def test_words_are_those_of_the_relation(demo, small_run, browser):
    with opened(browser, demo) as page:
        choose(page, model="roberta", score="uniform")
        page.select_option(".dt-length select", "100")
        got = {row[0]: row for row in table(page)}
    relation = small_run.sql("FROM word_statistics WHERE model = 'roberta' AND score = 'uniform'")
    assert len(got) == min(100, len(relation))
    figures = ["n_documents", "n_errors", "mass_ratio", "presence_ratio", "intensity_ratio", "lift",
               "q", "consistency"]
    for row in relation.to_dicts():
        if row["form"] in got:
            if (row["z"] or 0) < 0:
                row |= {"q": row["q_under"], "consistency": row["consistency_under"]}
            for cell, name in zip(got[row["form"]][2:], figures, strict=True):
                exact = math.inf if row[name] is None else row[name]
                written = math.inf if cell == "∞" else float(cell.replace(",", ""))
                digits = 0.06 if exact < 1e-3 else 6e-3  # 2, or 3 of 4
                assert written == pytest.approx(exact, rel=digits)


def test_findings_are_said_in_words(demo, small_run, browser):
    found = small_run.sql("findings")
    with opened(browser, demo) as page:
        said = page.locator("[aria-labelledby=h-findings] .findings").all_inner_texts()
    assert len(said) == 2
    for model, text in zip(small_run.sql("model_summary")["model"], said, strict=True):
        own = found.filter(model=model)
        assert len(re.findall("over-attended:|neglected:", text)) == len(own)
        for form in own["form"]:
            assert f"{form} over-attended" in text or f"{form} neglected" in text


FILTERS = [
    {"model": model, "outcome": outcome, "label": label, "predicted": predicted, "word": word}
    for model, outcome, (label, predicted), word in itertools.product(
        ["bert", "roberta"], ["errors", "wrong", "disagree", "correct", "all"],
        [("", ""), ("1", ""), ("", "0"), ("0", "1")], ["", "matinee", "a matinee"])
    if word or outcome != "all" or label
]


def by_hand(run, model, outcome, label, predicted, word):
    """Ids that answer to the filters, from predictions and words one by one."""
    forms = {}
    for i, form in run.sql("SELECT DISTINCT ON (document_id, position) document_id, form FROM "
                           "words ORDER BY document_id, position").rows():
        forms.setdefault(i, []).append(form)
    answers = {}
    for row in run.sql("predictions").to_dicts():
        answers.setdefault(row["document_id"], {})[row["model"]] = row
    found = {}
    for i, by_model in answers.items():
        mine = [*by_model.values()] if outcome == "wrong" else [by_model[model]]
        right = [one["correct"] for one in by_model.values()]
        wrong = [one["confidence"] for one in mine if not one["correct"]]
        sides = {"errors": wrong, "wrong": wrong, "correct": not wrong, "all": True,
                 "disagree": any(right) and not all(right)}
        pairs = {" ".join(pair) for pair in itertools.pairwise(forms[i])}
        if (sides[outcome] and label in ("", str(mine[0]["label"]))
                and (not predicted or predicted in [str(one["predicted"]) for one in mine])
                and (not word or word in forms[i] or word in pairs)):
            found[i] = round(max(wrong, default=-1), 4)
    return found


def test_it_says_which_score_to_trust_or_how_to_find_out(demo, validated, real, browser):
    relation = clsight.open(validated).sql("FROM faithfulness WHERE perturbation = 'masked'")
    with opened(browser, demo) as page:
        section = page.locator("section[aria-labelledby=h-faithful]")
        said = section.locator(".findings li").all_text_contents()
        shown = section.locator("tbody tr").all_inner_texts()
    assert [one.split(":")[0] for one in said] == ["bert", "roberta"]
    assert all(" trust " in one for one in said)
    assert len(shown) == len(relation)
    expected = relation.sort("model", -pl.col("comprehensiveness"), "score").to_dicts()
    for row, one in zip(shown, expected, strict=True):
        name, masked, interval, *_ = row.split("\t")
        assert name.replace(" ", "_") == one["score"]
        assert float(masked) == pytest.approx(one["comprehensiveness"], abs=6e-4)
        low, high = (float(end) for end in interval.split(" to "))
        assert low <= float(masked) <= high
    with opened(browser, real[1]) as page:
        expect(page.locator("section[aria-labelledby=h-faithful]")).to_contain_text(
            "Not measured yet: clsight validate")


def test_filters_are_those_of_the_database_and_of_a_loop(demo, small_run, browser):
    """The script of a report, the query of a server, and documents looked at one by one."""
    sampled = FILTERS[::13]
    with opened(browser, demo) as page, database.connect(small_run.folder) as connection:
        for wanted in sampled:
            expected = by_hand(small_run, **wanted)
            any_model = wanted["outcome"] == "wrong"
            rows = documents.found(
                connection, None if any_model else wanted["model"], wanted["word"] or None,
                wanted["label"] or None, wanted["predicted"] or None,
                "errors" if any_model else wanted["outcome"])
            assert {*rows.tolist()} == expected.keys()  # ids are rows here
            sure = [expected[row] for row in rows.tolist()]
            assert sure == sorted(sure, reverse=True)
            choose(page, **wanted)
            got = listed(page)
            assert {*map(int, got)} == expected.keys()
            assert len(got) == len(expected)
            sure = [expected[int(i)] for i in got]
            assert sure == sorted(sure, reverse=True)


def test_shades_are_scores_over_the_largest_of_the_document(demo, small_run, browser):
    with opened(browser, demo) as page:
        choose(page, model="bert", score="contribution", outcome="errors")
        article = page.locator("article").first
        i = int(re.match(r"Document (\d+)", article.inner_text())[1])
        for score in ("contribution", "uniform"):
            choose(page, score=score)
            words = small_run.sql(
                f"SELECT form, {score} AS x FROM words WHERE model = 'bert' AND document_id = {i} "
                "ORDER BY position")
            most = words["x"].abs().max()
            text = page.locator("article").first.locator(".text").first
            styles = text.locator("span").evaluate_all("all => all.map(w => w.style.background)")
            for style, x in zip(styles, words["x"], strict=True):
                colour, alpha = re.match(r"rgba\(var\(--(\w+)\), ([\d.e-]+)\)", style).groups()
                assert float(alpha) == pytest.approx(abs(x) / most / 1.7, abs=0.5 / 170 + 1e-6)
                assert colour == ("orange" if round(100 * x / most) < 0 else "blue")
            original = small_run.sql(f"SELECT text FROM documents WHERE document_id = {i}").item()
            assert text.evaluate("p => p.textContent") == original


def test_a_word_anywhere_filters_everything(demo, browser):
    with opened(browser, demo) as page:
        choose(page, score="contribution")
        page.locator(".findings button.word", has_text="matinee").first.click()
        expect(page.locator("#said")).to_contain_text("matinee")
        assert [row[0] for row in table(page)] == ["matinee"]
        expect(page.locator("#count")).to_contain_text("with “matinee”")
        for text in page.locator("article").all_inner_texts():
            assert "matinee" in text.casefold()
        page.click("#clear")
        expect(page.locator("#count")).not_to_contain_text("with")
        page.locator("article .text span[data-word=the]").first.click()
        assert page.input_value("#word") == "the"
        choose(page, word=" Matinee ")
        assert page.input_value("#word") == "matinee"
        page.click("#clear")
        mark = page.locator("#c-words svg text", has_text="matinee").first
        mark.click(force=True)
        assert page.input_value("#word") == "matinee"
        assert "word=matinee" in page.url
        with opened(browser, page.url) as again:
            assert again.input_value("#word") == "matinee"


def test_the_table_sorts_and_searches(demo, browser):
    with opened(browser, demo) as page:
        page.locator("#words thead th", has_text="documents").click()
        page.locator("#words thead th", has_text="documents").click()
        counts = [int(row[2].replace(",", "")) for row in table(page)]
        assert len(counts) == 10
        assert counts == sorted(counts, reverse=True)
        page.get_by_label("Search words").fill("matin")
        assert [row[0] for row in table(page)] == ["matinee"]


def test_keys_alone_reach_everything(demo, browser):
    with opened(browser, demo) as page:
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate(
                "document.activeElement.id || document.activeElement.className"))
        assert {"skip", "theme", "model", "score", "word"} <= reached
        assert any("word" in name for name in reached)
        page.focus("#score")
        page.keyboard.type("uniform")
        expect(page.locator("#h-words")).to_contain_text("uniform")
        button = page.locator("#words button.word").nth(2)
        form = button.inner_text()
        button.focus()
        page.keyboard.press("Enter")
        assert page.input_value("#word") == form
        page.focus("#clear")
        page.keyboard.press("Space")
        assert page.input_value("#word") == ""
        page.focus("#more")
        page.keyboard.press("Enter")
        expect(page.locator("article")).to_have_count(20)
        assert page.evaluate("document.activeElement.textContent").startswith("Document")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_bars_the_way(demo, browser, width, scheme):
    """axe-core finds no serious fault, and a phone shows it without scrolling sideways."""
    with opened(browser, demo, width, scheme) as page:
        page.locator(".findings button.word").first.click()
        page.wait_for_timeout(100)
        found = Axe().run(page).response["violations"]
        grave = [(one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"])
                 for one in found if one["impact"] in ("serious", "critical")]
        assert grave == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_report_of_real_reviews(real, browser):
    run, address = real
    with opened(browser, address) as page:
        assert page.locator("table.plain tbody tr").count() == 2
        for model, errors in run.sql("SELECT model, n_errors FROM model_summary").rows():
            choose(page, model=model, outcome="errors")
            expect(page.locator("#count")).to_contain_text(f"of {errors} documents")
        for name in ("calibration", "words", "agreement", "weights", "attention"):
            assert page.locator(f"#c-{name} svg").is_visible()


def test_hostile_texts_are_texts(tmp_path, browser):
    labels = ['<b>"bad"</b>', "it's & good"]
    folder = relabelled(tmp_path, labels)
    pq.write_table(pa.table({
        "id": [f"<i>{i}</i>" for i in range(len(HOSTILE) * 5)], "text": HOSTILE * 5,
        "label": [labels[i % 3 % 2] for i in range(len(HOSTILE) * 5)]}), tmp_path / "data.parquet")
    run = pipeline.run(str(tmp_path / "data.parquet"), text="text", label="label", id="id",
                       models={"bert": str(folder)}, output=tmp_path / "run",
                       options=pipeline.Options(min_documents=3))
    with opened(browser, written(run, tmp_path)) as page:
        choose(page, outcome="all")
        assert sorted(listed(page)) == sorted(f"<i>{i}</i>" for i in range(len(HOSTILE) * 5))
        texts = page.locator(".text").evaluate_all("all => all.map(one => one.textContent)")
        assert sorted(texts) == sorted(HOSTILE * 5)
        assert page.locator("main script, main img, main b b").count() == 0
        assert page.locator("#label option").all_text_contents() == ["any", *labels]
        choose(page, label=labels[0])
        assert page.locator("article").count() > 0


def relabelled(tmp_path, labels):
    folder = shutil.copytree(demo_models()["bert"], tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(labels)),
               "label2id": {label: i for i, label in enumerate(labels)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_sample_holds_the_evidence_then_errors_and_says_so(small_run, browser, tmp_path,
                                                             monkeypatch):
    monkeypatch.setattr(documents.sample, "__defaults__", (150_000,))
    with database.connect(small_run.folder) as connection:
        held = {one["id"] for one in documents.sample(connection, small_run.plan)}
        evidence = documents.found(connection, "bert", "matinee", outcome="errors")[:20]
    assert 60 < len(held) < 600
    assert {str(row) for row in evidence.tolist()} <= held
    with opened(browser, written(small_run, tmp_path)) as page:
        expect(page.locator("#sample")).to_contain_text(f"holds {len(held)} of 600 documents")
        choose(page, outcome="all")
        assert {*listed(page)} == held


def test_both_texts_of_a_pair_are_there(tmp_path):
    saved("bert", tmp_path / "model")
    pq.write_table(pa.table({"a": TEXTS, "b": PAIRS, "label": [0, 1, 2, 0]}),
                   tmp_path / "data.parquet")
    run = pipeline.run(str(tmp_path / "data.parquet"), text="a", text_pair="b", label="label",
                       models={"m": str(tmp_path / "model")}, output=tmp_path / "run",
                       options=pipeline.Options(min_documents=2))
    with database.connect(run.folder) as connection:
        found = documents.browse(connection, run.plan)
    assert found["total"] == 4
    for one in found["documents"]:
        i = int(one["id"])
        assert "".join(one["parts"]) == f"{TEXTS[i]}\n{PAIRS[i]}"
        forms = [one["forms"].get(place, word) for place, word in enumerate(one["parts"][1::2])]
        words = run.sql(f"FROM words WHERE document_id = {i} ORDER BY position")
        assert forms == words["form"].to_list()
        shares = words["uniform"] / words["uniform"].max()
        held = one["answers"]["m"]["scores"]["uniform"]
        np.testing.assert_allclose(held, 100 * shares, atol=0.51)


def test_long_documents_are_cut_and_say_so(tmp_path, browser):
    pq.write_table(pa.table({"text": ["word " * 3000, *(["a film"] * 19)], "label": [0, 1] * 10}),
                   tmp_path / "data.parquet")
    run = pipeline.run(str(tmp_path / "data.parquet"), text="text", label="label",
                       models={"bert": demo_models()["bert"]}, output=tmp_path / "run",
                       options=pipeline.Options(min_documents=2))
    with opened(browser, written(run, tmp_path)) as page:
        choose(page, outcome="all", word="word")
        article = page.locator("article")
        expect(article).to_contain_text("The first 400 of 3,000 words.")
        assert article.locator(".text span").count() == documents.MOST_WORDS


def test_the_command_writes_one_file_under_five_megabytes(small_run, tmp_path):
    done = CliRunner().invoke(cli, ["report", str(small_run.folder), "-o",
                                    str(tmp_path / "new" / "report.html")])
    assert done.exit_code == 0, done.output
    size = (tmp_path / "new" / "report.html").stat().st_size
    assert 1e6 < size < 5e6
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["report.html"]


def test_the_served_page_asks_for_its_documents(small_run, demo, browser):
    """The same documents as the report of a whole dataset lists, ten at a time."""
    wanted = {"model": "bert", "outcome": "errors", "word": "matinee"}
    with opened(browser, demo) as page:
        choose(page, **wanted)
        expected = listed(page)
    with serving(small_run.folder) as client, opened(browser, client.address) as page:
        expect(page.locator("#sample")).to_contain_text("All documents")
        choose(page, **wanted)
        expect(page.locator("#count")).to_contain_text(f"of {len(expected)} documents with")
        n, got = len(expected), []
        while len(got) < n:
            expect(page.locator("article")).to_have_count(min(len(got) + 10, n))
            got = page.locator("article h3").all_text_contents()
            if len(got) < n:
                page.click("#more")
        assert [re.match(r"Document (.*), gold", one)[1] for one in got] == expected
