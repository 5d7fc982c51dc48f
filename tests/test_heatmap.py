"""The picture shows the eager model's matrix, and its first row is what the scores are made of."""

import numpy as np
import pytest
from matplotlib.image import imread

from clsight.errors import UsageError
from clsight.heatmap import attention_matrix, draw
from clsight.words import segment
from conftest import demo_models
from reference import Eager


@pytest.mark.parametrize("model", ["bert", "roberta"])
def test_the_first_row_is_the_uniform_row(small_run, model):
    text = small_run.sql("SELECT text FROM documents WHERE document_id = 3").item()
    pieces, attention = attention_matrix(small_run, model, (text,), "uniform")
    eager = Eager(demo_models()[model])
    _, rows, _ = eager(text)
    np.testing.assert_allclose(attention[0], rows[-1].mean(0), atol=1e-5)
    np.testing.assert_allclose(attention.sum(1), 1, atol=1e-5)
    assert len(pieces) == len(attention)


@pytest.mark.parametrize("weights", ["uniform", "classifier", "projected"])
def test_weighted_rows_are_the_word_scores(small_run, weights):
    text = small_run.sql("SELECT text FROM documents WHERE document_id = 11").item()
    _, attention = attention_matrix(small_run, "bert", (text,), weights)
    scores = small_run.sql(
        f"SELECT {weights} FROM words WHERE model = 'bert' AND document_id = 11 ORDER BY position"
    )[weights]
    assert len(scores) == len(segment([text]).form[0])
    assert scores.sum() == pytest.approx(attention[0, 1:-1].sum(), abs=1e-4)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_written(small_run, tmp_path, suffix):
    path = tmp_path / "new" / f"picture.{suffix}"
    draw(small_run, "roberta", "5", "projected", path)
    assert path.stat().st_size > 5_000
    if suffix == "png":
        picture = imread(path)
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 0.05


@pytest.mark.parametrize(("model", "document", "name", "message"), [
    ("gpt", "5", "x.png", "no model 'gpt'; it has bert and roberta"),
    ("bert", "99999", "x.png", "no document '99999'"),
    ("bert", "5", "x.docx", "pictures are"),
])
def test_what_is_not_there_is_named(small_run, tmp_path, model, document, name, message):
    with pytest.raises(UsageError, match=message):
        draw(small_run, model, document, "uniform", tmp_path / name)
