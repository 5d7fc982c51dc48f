"""In the morning every document is there once: right, or named with the reason why not."""

import json
import shutil
from functools import partial

import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import clsight
from clsight import attention, events, general, pipeline, shards, trial, verify
from clsight.attention import Wanted
from clsight.batches import batch_of
from clsight.clock import Clock
from clsight.errors import UsageError
from clsight.executors.jobs import Job
from clsight.executors.local import local
from clsight.extract import Worker
from clsight.models import inspect
from conftest import DEMO, demo_models
from reference import Eager
from small_models import FAST, GENERAL, eager_model, opened_model
from test_families import saved

SCORES = "uniform,classifier,projected,norm,contribution,conservative"
LISTS = ("logits", "start", "end", "attention", "norm", "contribution", "conservative")
NEITHER = "logits are not finite, in float32 neither"


def edited(name, folder, change):
    """A copy of a model of the demo, in float32, whose weights a function has changed."""
    shutil.copytree(DEMO / name, folder)
    weights = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def embedding(folder, weights, piece):
    """The row of a piece, to be changed in place."""
    own = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(piece)
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    return weights[name][own]


def holding(reviews, form):
    """Rows of the reviews that hold a word."""
    texts = pq.read_table(reviews)["text"].to_pylist()
    return [row for row, text in enumerate(texts) if form in text.lower()]


def run(reviews, models, output, dtype="float16", **options):
    return pipeline.run(
        str(reviews), text="text", label="label", models=models, output=output, dtype=dtype,
        shard_size=256, options=pipeline.Options(min_documents=20, permutations=20, bootstrap=20),
        **{"scores": SCORES, **options},
    )


def stored(made, model, kind="attention"):
    return pa.concat_tables([pq.read_table(made.folder / model / kind / name)
                             for name in made.plan.shard_names()])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """BERT, for which "interface" is too large in half precision and "drama" no number at all, and
    RoBERTa, for which "perfect" is none."""
    folder = tmp_path_factory.mktemp("models")

    def bert(weights):
        embedding(DEMO / "bert", weights, "interface").mul_(1e8)
        embedding(DEMO / "bert", weights, "drama")[3] = torch.nan

    def roberta(weights):
        embedding(DEMO / "roberta", weights, "Ġperfect")[:] = torch.inf

    return {name: edited(name, folder / name, change)
            for name, change in (("bert", bert), ("roberta", roberta))}


@pytest.fixture(scope="module")
def made(reviews, models, tmp_path_factory):
    """A run with them in half precision, and the rows that matter."""
    paths = {name: str(path) for name, path in models.items()}
    return run(reviews, paths, tmp_path_factory.mktemp("runs") / "half")


@pytest.fixture(scope="module")
def rows(reviews):
    """The word that is to blame -> rows."""
    found = {form: holding(reviews, form) for form in ("interface", "drama", "perfect")}
    found["interface"] = sorted({*found["interface"]} - {*found["drama"]})
    assert all(map(len, found.values()))
    return found


def test_too_large_for_half_precision_is_computed_in_float32(made, models, rows, reviews):
    table, texts = stored(made, "bert"), pq.read_table(reviews)["text"].to_pylist()
    again = table.filter(table["retried"])
    assert again["row"].to_pylist() == rows["interface"]
    assert again["problem"].null_count == len(again)
    eager = Eager(models["bert"])
    for document in again.to_pylist():
        logits, attended, contribution = eager(texts[document["row"]])
        np.testing.assert_allclose(document["logits"], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(document["attention"], attended[-1].ravel(), atol=1e-6)
        np.testing.assert_allclose(document["contribution"], contribution.sum(0), atol=1e-5)
        assert document["predicted"] == logits.argmax()
        kept = np.array(document["attention"], np.float32)
        assert (kept != kept.astype(np.float16)).any()


def test_what_is_no_number_in_float32_either_is_flagged(made, rows):
    for model, word in (("bert", "drama"), ("roberta", "perfect")):
        table = stored(made, model)
        failed = table.filter(table["problem"].is_valid())
        assert failed["row"].to_pylist() == rows[word]
        assert set(failed["problem"].to_pylist()) == {NEITHER}
        for name in ("predicted", "confidence", "margin", "target", "target_margin"):
            assert failed[name].null_count == len(failed)
        for name in LISTS:
            assert set(pc.list_value_length(failed[name]).to_pylist()) == {0}
        assert not any(failed["retried"].to_pylist())
        assert all(n > 2 for n in failed["n_pieces"].to_pylist())


def test_the_others_are_as_if_nothing_had_happened(made, rows, reviews, tmp_path):
    """Down to the last bit: their neighbours in a batch do not reach them."""
    intact = run(reviews, demo_models(), tmp_path / "run")
    for model, words in (("bert", ("interface", "drama")), ("roberta", ("perfect",))):
        touched = {row for word in words for row in rows[word]}
        for kind in ("attention", "scores"):
            tables = [stored(one, model, kind) for one in (made, intact)]
            one, other = (table.filter(pc.invert(pc.is_in(
                table["row"], pa.array([*touched])))) for table in tables)
            assert one.equals(other)
            assert len(one) == 600 - len(touched)


def test_every_document_is_there_once_or_named(made, rows):
    tested = set(made.sql("tested_documents")["row"])
    assert not tested & {*rows["drama"], *rows["perfect"]}
    assert tested >= {*rows["interface"]} - {*rows["perfect"]}
    bad = made.sql("bad_documents")
    for model, word in (("bert", "drama"), ("roberta", "perfect")):
        failed = set(rows[word])
        own = bad.filter(model=model)
        assert sorted(own["row"]) == rows[word]
        assert set(own["reason"]) == {NEITHER}
        predictions = made.sql("predictions").filter(model=model)
        assert sorted(predictions["row"]) == sorted({*range(600)} - failed)
        assert predictions.null_count().row(0) == (0,) * predictions.width
        for relation, key in (("words", "document_id"), ("word_mass", "row")):
            there = set(made.sql(relation).filter(model=model)[key])
            assert there == {*range(600)} - failed
        summary = made.sql("model_summary").row(by_predicate=polars.col("model") == model,
                                                named=True)
        assert summary["n_failed"] == len(failed)
        assert summary["n_documents"] == 600 - len(failed)
        assert summary["n_retried"] == (len(rows["interface"]) if model == "bert" else 0)
        assert summary["n_copies"] == 600 - len({*rows["drama"], *rows["perfect"]}) - len(tested)
    assert set(made.sql("FROM strata")["row"]) == tested
    assert made.sql("documents").height == 600


def test_scores_of_documents_without_an_answer_are_null(made, rows):
    for model, word in (("bert", "drama"), ("roberta", "perfect")):
        table = stored(made, model, "scores")
        assert table["row"].to_pylist() == [*range(600)]
        for name in SCORES.split(","):
            null = table.filter(table[name].is_null())["row"].to_pylist()
            assert null == rows[word]
            assert np.isfinite(table[name].combine_chunks().flatten()).all()
    profile = made.sql("head_profile").filter(model="bert")
    assert set(profile["n_documents"]) == {600 - len(rows["drama"])}


def test_what_happened_is_told(made, rows):
    said = list(events.read(made.folder))
    retried = [e for e in said if e["event"] == "retried" and e["model"] == "bert"]
    asked = sorted(rows["interface"] + rows["drama"])
    assert sorted(row for e in retried for row in e["rows"]) == asked
    assert all("computed again in float32: row" in e["message"] for e in retried)
    failed = [e for e in said if e["event"] == "failed"]
    assert {(e["model"], row, e["reason"], e["level"]) for e in failed for row in e["rows"]} == {
        (model, row, NEITHER, "warning")
        for model, word in (("bert", "drama"), ("roberta", "perfect")) for row in rows[word]}
    assert len({e["message"] for e in failed}) == len(failed)


def test_such_a_run_passes_its_checks_and_is_complete(made, reviews):
    assert verify.verify(made.folder) == []
    assert pipeline.pending_shards(made.folder, made.plan) == {"bert": [], "roberta": []}


def spoil(folder, kind, change):
    """Change the first shard of BERT's; returns what the checks of the run then find."""
    path = folder / "bert" / kind / "00000.parquet"
    shards.write(change(pq.read_table(path)), path)
    opened = clsight.open(folder)
    return {check for check in ("documents_without_prediction", "words_without_score",
                                "scores_not_finite", "attention_above_one")
            if opened.sql(check).height}


def put(table, name, place, value):
    values = table[name].to_pylist()
    values[place] = value
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name),
                            pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(("kind", "change", "checks"), [
    ("attention", lambda t, failed, fine: t.filter(pa.array(t["row"].to_numpy() != fine)),
     {"documents_without_prediction"}),
    ("attention", lambda t, failed, fine: put(t, "predicted", fine, None),
     {"documents_without_prediction"}),
    ("attention", lambda t, failed, fine: t.filter(pa.array(t["row"].to_numpy() != failed)),
     {"documents_without_prediction", "words_without_score"}),
    ("scores", lambda t, failed, fine: put(t, "uniform", fine, None), {"words_without_score"}),
    ("scores", lambda t, failed, fine: put(t, "uniform", fine, [0.5]), {"words_without_score"}),
    ("scores", lambda t, failed, fine: put(t, "uniform", failed, [0.5]), {"words_without_score"}),
    ("scores", lambda t, failed, fine: put(t, "norm", fine, [float("inf")]), {"scores_not_finite"}),
    ("scores", lambda t, failed, fine: put(t, "contribution", fine, [float("nan")]),
     {"scores_not_finite"}),
], ids=["lost", "no class", "failed lost", "no scores", "too few", "too many", "inf", "nan"])
def test_checks_still_find_real_faults(made, rows, tmp_path, kind, change, checks):
    folder = shutil.copytree(made.folder, tmp_path / "run")
    fine = next(row for row in range(256) if row not in {row for own in rows.values()
                                                         for row in own})
    assert spoil(folder, kind, lambda table: change(table, rows["drama"][0], fine)) == checks


def test_stored_values_beyond_half_precision_stay_as_they_are(reviews, tmp_path):
    """In bfloat16 the model itself copes; contributions beyond 65,504 cannot be rounded to half."""
    texts = pq.read_table(reviews)["text"].to_pylist()[:60]

    def large(weights):
        weights["classifier.weight"].mul_(40_000)

    folder = edited("bert", tmp_path / "bert", large)
    data = tmp_path / "data.parquet"
    pq.write_table(pq.read_table(reviews).slice(0, 60), data)
    made = run(data, {"bert": str(folder)}, tmp_path / "run", "bfloat16",
               scores="uniform,contribution")
    eager, table = Eager(folder), stored(made, "bert")
    expected = [eager(text) for text in texts]
    largest = np.array([np.abs(found[2].sum(0)).max() for found in expected])
    retried = table["retried"].to_numpy()
    assert 5 <= retried.sum() <= 55
    assert retried[largest > 75_000].all()
    assert not retried[largest < 55_000].any()
    for document, (logits, _, contribution) in zip(table.to_pylist(), expected, strict=True):
        exact = 1e-4 if document["retried"] else 0.1
        scale = np.abs(contribution).max()
        np.testing.assert_allclose(document["contribution"], contribution.sum(0),
                                   rtol=exact, atol=exact * scale)
        np.testing.assert_allclose(document["logits"], logits, rtol=exact,
                                   atol=exact * np.abs(logits).max())
    assert made.sql("bad_documents").is_empty()
    assert made.sql("model_summary")["n_retried"].to_list() == [retried.sum()]


def test_in_a_float32_run_no_number_is_flagged_at_once(reviews, models, rows, tmp_path):
    made = run(reviews, {"bert": str(models["bert"])}, tmp_path / "run", "float32")
    table = stored(made, "bert")
    assert table.filter(table["problem"].is_valid())["row"].to_pylist() == rows["drama"]
    assert set(made.sql("bad_documents")["reason"]) == {"logits are not finite"}
    assert not any(table["retried"].to_pylist())
    assert not [e for e in events.read(made.folder) if e["event"] == "retried"]


def test_a_target_is_not_explained_where_there_is_no_answer(reviews, models, rows, tmp_path):
    made = run(reviews, {"bert": str(models["bert"])}, tmp_path / "run", "float16", target="gold",
               scores="uniform,contribution")
    table = stored(made, "bert")
    assert table.filter(table["target"].is_null())["row"].to_pylist() == rows["drama"]
    gold = pq.read_table(reviews)["label"].to_numpy()
    answered = table.filter(table["problem"].is_null())
    np.testing.assert_array_equal(answered["target"], gold[answered["row"].to_numpy()])


def test_a_model_without_any_answer_leaves_the_run_whole(reviews, tmp_path, monkeypatch):
    whole = attention.forward

    def forward(classifier, ids, *rest):
        if classifier.model.config.model_type == "roberta" and len(rest) > 3:  # not its trial
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(classifier, ids, *rest)

    monkeypatch.setattr(attention, "forward", forward)
    made = run(reviews, demo_models(), tmp_path / "run", "float32", scores="default")
    bad = made.sql("bad_documents")
    assert bad.filter(model="roberta").height == 600
    assert all(reason.startswith("not enough memory on cpu for its ") for reason in bad["reason"])
    summary = made.sql("SELECT model, n_documents, n_failed, accuracy, note FROM model_summary "
                       "ORDER BY model").rows()
    assert summary[1][1:4] == (0, 600, None)
    assert "no document has an answer" in summary[1][4]
    assert summary[0][1:3] == (600, 0)
    assert made.sql("words").filter(model="bert")["document_id"].n_unique() == 600
    assert made.sql("over_attended").is_empty()
    assert verify.verify(made.folder) == []


@pytest.mark.parametrize(("where", "reason"), [
    ("forward", "logits are not finite; in float32: not enough memory on cpu for its "),
    ("load", "logits are not finite; in float32: not enough memory on cpu for the model"),
])
def test_want_of_memory_in_float32_is_named(reviews, models, rows, tmp_path, monkeypatch, where,
                                            reason):
    whole, load = attention.forward, AutoModelForSequenceClassification.from_pretrained

    def forward(classifier, ids, *rest):
        if where == "forward" and classifier.dtype == torch.float32 and len(rest) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(classifier, ids, *rest)

    opened = []

    def from_pretrained(*args, **options):
        opened.append(args)
        if where == "load" and len(opened) > 1:  # the second time is for float32
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(*args, **options)

    monkeypatch.setattr(attention, "forward", forward)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
    made = run(reviews, {"bert": str(models["bert"])}, tmp_path / "run", scores="default")
    bad = made.sql("bad_documents")
    assert sorted(bad["row"]) == sorted(rows["interface"] + rows["drama"])
    assert all(one.startswith(reason) for one in bad["reason"])
    assert not any(stored(made, "bert")["retried"].to_pylist())


@pytest.mark.parametrize("name", [*FAST, *GENERAL])
def test_a_document_without_numbers_does_not_reach_its_neighbours(name):
    """Of every family, in a batch with documents of its own length and of others."""
    model = opened_model(name, eager_model(name))
    forward = attention.forward if model.family.fast else general.forward
    scores = ["contribution", "rollout", "relevance", "conservative", "contribution_1"]
    wanted = Wanted((0, 1, 2), (*scores, "norm") if model.family.fast else tuple(scores))
    lengths = np.array([9, 9, 9, 5, 4])
    batch = batch_of(np.arange(5), lengths)
    ids = torch.arange(10, 10 + lengths.sum())
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])
    weights = model.model.get_input_embeddings().weight.data

    def answer():
        found = forward(model, ids, positions, batch.groups, wanted)
        return [found.logits, found.rows.flatten(0, 1).T, *(x.sum(0) for x in
                                                            found.scores.values())]

    before, row = answer(), weights[int(ids[12])].clone()
    weights[int(ids[12])] = torch.nan  # the fourth piece of the second document
    after = answer()
    weights[int(ids[12])] = row
    for one, other in zip(before, after, strict=True):
        own = torch.ones(len(one), dtype=torch.bool)
        own[1 if len(one) == len(lengths) else slice(9, 18)] = False
        torch.testing.assert_close(other[own], one[own], rtol=0, atol=0)
        assert not other[~own].isfinite().all()


@pytest.mark.parametrize(("value", "dtype", "match"), [
    (torch.nan, "float32", r"are not finite, for weights of .* are not \(in bert\.enc.*\): take"),
    (torch.nan, "bfloat16", r"are not finite, for weights of .* are not \(in bert\.enc.*\): take"),
    (1e6, "float16", "are not finite in float16, and are in float32: pass --dtype float32"),
    (1e38, "float32", "are not finite, not even in float32, for the weights of .* are too large"),
])
def test_weights_that_no_text_survives_are_blamed(reviews, tmp_path, value, dtype, match):
    def spoilt(weights):
        weights["bert.encoder.layer.1.output.dense.weight"][:] = value

    folder = edited("bert", tmp_path / "bert", spoilt)
    with pytest.raises(UsageError, match=match) as refused:
        run(reviews, {"one": str(folder)}, tmp_path / "run", dtype, scores="default")
    assert str(refused.value).startswith("one: its logits for a short text")
    assert "\n" not in str(refused.value)


def test_weights_of_the_general_path_are_blamed_as_well(tmp_path):
    saved("mpnet", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["classifier.dense.weight"][:] = torch.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    plan = inspect("m", str(tmp_path / "model"), "last", [0, 1, 2])
    with pytest.raises(UsageError, match=r"not finite, for weights .*classifier\.dense\.weight"):
        trial.opened("m", plan, torch.float32, "cpu")


def test_a_model_that_cannot_be_run_is_named(tmp_path):
    folder = shutil.copytree(DEMO / "bert", tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": np.nan}))
    plan = inspect("m", str(folder), "last", [0, 1])
    with pytest.raises(UsageError, match="bert cannot be run on a short text: dropout") as told:
        trial.opened("m", plan, torch.float32, "cpu")
    assert "\n" not in str(told.value)


def test_models_that_know_no_second_text_are_refused_pairs(reviews, tmp_path):
    table = pq.read_table(reviews).slice(0, 20)
    data = tmp_path / "pairs.parquet"
    pq.write_table(table.append_column("pair", table["text"]), data)
    with pytest.raises(UsageError, match="bert has 1 token type, too few for a second text"):
        run(data, {"bert": str(DEMO / "bert")}, tmp_path / "run", "float32", text_pair="pair")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_run_of_a_half_precision_checkpoint_is_exact(reviews, tmp_path, dtype):
    folder = tmp_path / "bert"
    shutil.copytree(DEMO / "bert", folder)
    save_file({name: weight.to(dtype) for name, weight in
               load_file(folder / "model.safetensors").items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(
        config | {"dtype": str(dtype).removeprefix("torch.")}))
    data = tmp_path / "data.parquet"
    pq.write_table(pq.read_table(reviews).slice(0, 20), data)
    made = run(data, {"bert": str(folder)}, tmp_path / "run", "float32", scores="default")
    eager = Eager(folder)
    for document, text in zip(stored(made, "bert").to_pylist(),
                              pq.read_table(data)["text"].to_pylist(), strict=True):
        logits, attended, contribution = eager(text)
        np.testing.assert_allclose(document["logits"], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(document["attention"], attended[-1].ravel(), atol=1e-6)
        np.testing.assert_allclose(document["contribution"], contribution.sum(0), atol=1e-5)


def test_processes_tell_what_happened_in_them(made, rows, tmp_path, caplog):
    (tmp_path / "documents").symlink_to(made.folder / "documents")
    caplog.set_level("INFO", "clsight")
    jobs = [Job("bert", name) for name in made.plan.shard_names()]
    make = partial(Worker, tmp_path, made.plan, {}, None)
    assert sorted(local("cpu", 2).run(make, jobs, lambda *_: None, Clock())) == jobs
    for name in made.plan.shard_names():
        one, other = (pq.read_table(folder / "bert" / "attention" / name)
                      for folder in (tmp_path, made.folder))
        for column in ("row", "retried", "problem", "predicted"):
            assert one[column] == other[column]
    said = {kind: sorted(row for record in caplog.records if record.event == kind
                         for row in record.fields["rows"]) for kind in ("retried", "failed")}
    assert said == {"retried": sorted(rows["interface"] + rows["drama"]), "failed": rows["drama"]}


def test_the_general_path_computes_again_as_well(tmp_path):
    _, tokenizer = saved("mpnet", tmp_path / "model")
    texts = ["good film", "bad film", "the film was good", "no more of it"]
    own = next(piece for piece in tokenizer(texts[1])["input_ids"]
               if piece not in {p for i in (0, 2, 3) for p in tokenizer(texts[i])["input_ids"]})
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["mpnet.embeddings.word_embeddings.weight"][own] *= 1e8
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": texts, "label": [0, 1, 2, 0]}), data)
    made = pipeline.run(str(data), text="text", label="label", dtype="float16",
                        models={"m": str(tmp_path / "model")}, output=tmp_path / "run",
                        scores="contribution", options=pipeline.Options(min_documents=2))
    assert stored(made, "m")["retried"].to_pylist() == [False, True, False, False]
    logits, attended, contribution = Eager(tmp_path / "model")(texts[1])
    document = stored(made, "m").to_pylist()[1]
    np.testing.assert_allclose(document["logits"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(document["attention"], attended[-1].ravel(), atol=1e-6)
    np.testing.assert_allclose(document["contribution"], contribution.sum(0), atol=1e-5)
