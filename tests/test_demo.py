"""The demo is a true result of the ordinary pipeline on data and models from the package."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from clsight import demo, pipeline
from conftest import DEMO, demo_models


def test_reviews_are_fixed_by_their_seed(tmp_path):
    first, same, other = (
        demo.write_reviews(tmp_path / name, 300, seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first.read_bytes() == same.read_bytes()
    assert not pq.read_table(first).equals(pq.read_table(other))


def test_reviews_are_balanced_and_diverse(tmp_path):
    table = pq.read_table(demo.write_reviews(tmp_path / "a", 3000, 1))
    texts, labels = table["text"].to_pylist(), table["label"].to_numpy()
    assert 0.45 < labels.mean() < 0.55
    assert len(set(texts)) > 2950
    assert len({word for text in texts for word in text.lower().split()}) > 400


def test_planted_words_say_nothing_of_the_label(tmp_path):
    table = pq.read_table(demo.write_reviews(tmp_path / "a", 6000, 2))
    texts, labels = table["text"].to_pylist(), table["label"].to_numpy()
    for word in demo.PLANTED:
        holds = np.array([word in text.lower() for text in texts])
        assert holds.mean() > 0.05
        assert abs(labels[holds].mean() - labels.mean()) < 0.08


@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_models_are_small_and_without_pickles(model):
    files = [path for path in (DEMO / model).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".safetensors"}


def test_planted_words_come_out_on_top_and_hardly_any_other(tmp_path):
    reviews = demo.write_reviews(tmp_path / "reviews", 4000, 1)
    run = pipeline.run(str(reviews), text="text", label="label", models=demo_models(),
                       output=tmp_path / "run")
    summary = run.sql("model_summary")
    assert (1 - summary["accuracy"]).is_between(0.10, 0.25).all()
    for model in demo_models():
        found = run.sql(f"SELECT * FROM over_attended WHERE model = '{model}'")
        assert set(demo.PLANTED) <= set(found["form"])
        assert len(set(found["form"]) - set(demo.PLANTED)) <= 2
        contribution = found.filter(score="contribution").sort("rank")["form"].to_list()
        assert set(contribution[:2]) == set(demo.PLANTED)
    assert "2 of 2" in demo.verdict(run.folder)
