"""Each family from a checkpoint folder and texts, with its own kind of tokenizer.

The reference is the model as transformers runs it: eager, float64, its tokenizer's own padding and
truncation.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from clsight import pipeline, shards, tables
from clsight.errors import UsageError
from clsight.extractor import open_extractor
from clsight.models import inspect
from clsight.plan import DatasetPlan, Plan
from conftest import demo_models
from small_models import FAST, GENERAL, eager_model
from small_tokenizers import small_tokenizer

TEXTS = [
    "A gripping, intelligent film ... and not a dull minute!",
    "naïve café, 日本 映画 👨‍👩‍👧  doubled  spaces",
    "wonderful " * 60,
    "no",
]
PAIRS = ["It is a good film.", "Nobody's in it, really?", "dull " * 60, "yes"]


def saved(name, folder, **changes):
    """A small model and its tokenizer as a checkpoint; the model itself, in float64."""
    family = name.split()[0]
    tokenizer = small_tokenizer(family)
    model = eager_model(name, vocab_size=len(tokenizer), **changes)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    dtype = torch.float32 if family == "xlnet" else torch.float64
    reference = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype
    ).eval()
    return reference, tokenizer


def extracted(folder, tmp_path, max_length, pairs=None, dtype="float32"):
    """The attention table of `TEXTS`, all layers, in batches of at most 60 pieces."""
    model = inspect("m", str(folder), "all", [0, 1, 2])
    model = dataclasses.replace(model, max_length=max_length)
    data = DatasetPlan("", "text", "pair" if pairs else None, "label", None, None, "int64",
                       "int64", "error")
    plan = Plan(data, {"m": model}, dtype, tables.ALWAYS, ("contribution",), "predicted", 10)
    documents = pa.table({
        "row": range(len(TEXTS)), "text": TEXTS, "label": [0] * len(TEXTS),
        "text_pair": pa.array(pairs or [None] * len(TEXTS), pa.string()),
        "reason": pa.nulls(len(TEXTS), pa.string()),
    })
    shards.write(documents, tmp_path / "documents.parquet")
    extractor = open_extractor("m", plan, tmp_path, "cpu", 60)
    read = extractor.read(tmp_path / "documents.parquet")
    return extractor.table(read, extractor.attend(read, lambda _: None))


def of_reference(model, encoded, i, read):
    """Logits and rows [layers, heads, pieces] of document i of a padded batch."""
    n = int(encoded["attention_mask"][i].sum())
    if model.config.model_type == "modernbert":
        # Padding beyond the window of all pieces makes its eager attention NaN.
        encoded, i = {name: values[i : i + 1, :n] for name, values in encoded.items()}, 0
    with torch.no_grad():
        answer = model(**encoded, output_attentions=True)
    own = slice(-n, None) if read == -1 else slice(0, n)  # XLNet pads in front
    rows = torch.stack([layer[i, :, own, own][:, read] for layer in answer.attentions])
    return answer.logits[i].numpy(), rows.numpy()


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("name", [*FAST, *GENERAL])
def test_a_checkpoint_is_what_transformers_makes_of_it(name, pairs, tmp_path):
    model, tokenizer = saved(name, tmp_path / "model")
    stored = extracted(tmp_path / "model", tmp_path, 40, pairs).to_pylist()
    encoded = tokenizer(TEXTS, pairs, padding=True, truncation=True, max_length=40,
                        return_tensors="pt")
    read = -1 if name == "xlnet" else slice(None) if name.endswith(("mean", "late")) else 0
    for i, document in enumerate(stored):
        logits, rows = of_reference(model, encoded, i, read)
        rows = rows.mean(2) if isinstance(read, slice) else rows
        np.testing.assert_allclose(document["logits"], logits, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(document["attention"], rows.ravel(), atol=2e-5)
    whole = tokenizer(TEXTS, pairs)["input_ids"]
    assert [document["truncated"] for document in stored] == [len(ids) > 40 for ids in whole]
    assert stored[2]["truncated"]


@pytest.mark.parametrize("name", [*FAST, *GENERAL])
def test_every_family_runs_in_half_precision(name, tmp_path):
    """Also those that make parameters of their own, which transformers opens in float32."""
    saved(name, tmp_path / "model")
    exact = extracted(tmp_path / "model", tmp_path, 40)
    half = extracted(tmp_path / "model", tmp_path, 40, dtype="bfloat16")
    assert half["problem"].null_count == len(TEXTS)
    for one, other in zip(half["attention"].to_pylist(), exact["attention"].to_pylist(),
                          strict=True):
        np.testing.assert_allclose(one, other, atol=0.08)
    assert half["attention"].to_pylist() != exact["attention"].to_pylist()


def test_pairs_have_the_words_of_both_texts_with_their_segment(tmp_path):
    model, tokenizer = saved("bert", tmp_path / "model")
    data = pa.table({"a": TEXTS, "b": PAIRS, "label": [0, 1, 2, 0]})
    pq.write_table(data, tmp_path / "data.parquet")
    run = pipeline.run(
        str(tmp_path / "data.parquet"), text="a", text_pair="b", label="label", dtype="float32",
        models={"m": str(tmp_path / "model")}, output=tmp_path / "run",
        options=pipeline.Options(min_documents=2),
    )
    for i in (0, 1, 3):
        words = run.sql(f"FROM words WHERE document_id = {i} ORDER BY position")
        texts = [TEXTS[i], PAIRS[i]]
        spelled = [texts[segment][start:end] for segment, start, end in
                   words.select("segment", "start_char", "end_char").rows()]
        assert [w.casefold() for w in spelled] == words["form"].to_list()
        assert sum(words["segment"] == 0) > 0 < sum(words["segment"] == 1)
        encoded = tokenizer(*texts, return_tensors="pt", return_offsets_mapping=True,
                            return_special_tokens_mask=True)
        segment, special = encoded.sequence_ids(0), encoded.pop("special_tokens_mask")[0]
        spans = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            row = model(**encoded, output_attentions=True).attentions[-1][0, :, 0].mean(0)
        expected = [
            sum(float(a) for a, (s, e), t, z in zip(row, spans, segment, special, strict=True)
                if t == word[0] and not z and s < word[2] and word[1] < e)
            for word in words.select("segment", "start_char", "end_char").rows()
        ]
        np.testing.assert_allclose(words["uniform"], expected, atol=1e-5)


def test_one_logit_is_the_log_odds_of_class_1(tmp_path):
    model, tokenizer = saved("bert", tmp_path / "model", num_labels=1)
    pq.write_table(pa.table({"a": TEXTS, "label": [0, 1, 1, 0]}), tmp_path / "data.parquet")
    run = pipeline.run(
        str(tmp_path / "data.parquet"), text="a", label="label", dtype="float32",
        models={"m": str(tmp_path / "model")}, output=tmp_path / "run",
        options=pipeline.Options(min_documents=2),
    )
    encoded = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt",
                        max_length=run.plan.models["m"].max_length)
    with torch.no_grad():
        odds = model(**encoded).logits[:, 0].numpy()
    got = run.sql("FROM predictions ORDER BY document_id")
    assert got["predicted"].to_list() == (odds > 0).astype(int).tolist()
    np.testing.assert_allclose(got["confidence"], 1 / (1 + np.exp(-np.abs(odds))), rtol=1e-4)
    np.testing.assert_allclose(got["margin"], np.abs(odds), rtol=1e-4, atol=1e-5)


def test_unusable_second_texts_are_named(tmp_path):
    pq.write_table(pa.table({"a": ["x", "y"], "b": ["ok", " "], "label": [0, 1]}),
                   tmp_path / "data.parquet")
    with pytest.raises(Exception, match="second text is empty in row 1"):
        pipeline.run(str(tmp_path / "data.parquet"), text="a", text_pair="b", label="label",
                     models=demo_models(), output=tmp_path / "run")


@pytest.mark.parametrize(("scores", "match"), [
    ("attention", "there is no score 'attention'"),
    ("norm_1", "there is no score 'norm_1'"),
    ("contribution_3", "m has the layers 0 to 2"),
    ("norm", "not for m: value vectors of mpnet models are out of reach"),
])
def test_scores_that_cannot_be_are_refused_with_the_reason(scores, match, tmp_path):
    saved("mpnet", tmp_path / "model")
    pq.write_table(pa.table({"a": TEXTS, "label": [0, 1, 2, 0]}), tmp_path / "data.parquet")
    with pytest.raises(UsageError, match=match):
        pipeline.run(str(tmp_path / "data.parquet"), text="a", label="label", scores=scores,
                     models={"m": str(tmp_path / "model")}, output=tmp_path / "run")
