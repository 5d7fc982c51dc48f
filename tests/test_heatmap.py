"""The picture shows the eager model's matrices; its first row is what the scores are made of."""

import dataclasses
import logging
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.image import imread
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from clsight import heatmap
from clsight.errors import UsageError
from clsight.heatmap import DPI, Heatmap, draw
from clsight.matrices import attention
from clsight.models import inspect
from clsight.words import segment
from conftest import demo_models
from test_document_view import document_of
from test_families import saved

HARD = "Unforgettable... \"naïve\" café's 日本 screenplay,  überraschend!"
PAIR = "It isn't 7.5, said nobody."


def eager_matrices(path, texts, max_length=None):
    """Attentions [layers, heads, L, L] in float64, and the encoding; XLNet's in float32."""
    model = AutoModelForSequenceClassification.from_pretrained(
        path, attn_implementation="eager",
        dtype=torch.float32 if "xlnet" in str(path) else torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = tokenizer(*texts, return_tensors="pt", truncation=max_length is not None,
                        max_length=max_length, return_offsets_mapping=True)
    inputs = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
    with torch.no_grad():
        answer = model(**inputs, output_attentions=True)
    return np.stack([layer[0].double().numpy() for layer in answer.attentions]), encoded, tokenizer


def words_by_loop(matrix, encoded, tokenizer, texts):
    """One head's matrix [L, L] on words: sums to a word, means from it, piece by piece."""
    spans = [(i, start, end) for i, text in enumerate(texts) for start, end in zip(
        *(side[0].as_py() for side in (lambda w: (w.start, w.end))(segment(pa.array([text])))),
        strict=True)]
    special = [j for j, i in enumerate(encoded.sequence_ids(0)) if i is None]
    ids = encoded["input_ids"][0].tolist()
    (cls,) = [j for j in special if ids[j] == tokenizer.cls_token_id][:1]
    members = [[(cls, 1.0)], *[[] for _ in spans], [(j, 1.0) for j in special if j != cls]]
    for j, (i, (start, end)) in enumerate(zip(
            encoded.sequence_ids(0), encoded["offset_mapping"][0].tolist(), strict=True)):
        if i is None:
            continue
        over = [(w, min(end, b) - max(start, a)) for w, (k, a, b) in enumerate(spans)
                if k == i and min(end, b) > max(start, a)]
        # A piece of white space belongs to the word behind it.
        over = over or [(next(w for w, (k, _, b) in enumerate(spans) if k == i and b > start), 1)]
        for w, overlap in over:
            members[1 + w].append((j, overlap / sum(n for _, n in over)))
    made = np.full((len(members), len(members)), np.nan)
    for q, queries in enumerate(members):
        for k, keys in enumerate(members):
            if queries and keys:
                made[q, k] = sum(a * b * matrix[i, j] for i, a in queries for j, b in keys) / sum(
                    a for _, a in queries)
    return made


@pytest.mark.parametrize("model", ["bert", "roberta"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_every_head_is_the_eager_models(small_run, model, layer):
    found = small_run.document(3)
    drawn = attention(small_run.plan.models[model], found, layer=layer)
    expected, encoded, tokenizer = eager_matrices(demo_models()[model], found.texts)
    np.testing.assert_allclose(drawn.heads, expected[layer], atol=1e-6)
    assert drawn.names == tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    np.testing.assert_allclose(drawn.averaged("uniform"), expected[layer].mean(0), atol=1e-6)


@pytest.mark.parametrize("texts", [(HARD,), (HARD, PAIR)], ids=["text", "pair"])
@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "modernbert", "xlnet", "deberta-v2"])
def test_words_are_summed_to_and_averaged_from(name, texts, tmp_path):
    saved(name, tmp_path / name)
    plan = inspect(name, str(tmp_path / name), "all", [0, 1, 2])
    found = document_of(*texts)
    drawn = attention(plan, found, words=True)
    matrices, encoded, tokenizer = eager_matrices(tmp_path / name, texts)
    for head, matrix in zip(drawn.heads, matrices[-1], strict=True):
        np.testing.assert_allclose(head, words_by_loop(matrix, encoded, tokenizer, texts),
                                   atol=2e-5)
    assert drawn.names[0] == "[CLS]"
    assert drawn.names[-1] == "[SEP]"
    assert "".join(drawn.names[1:-1]) == "".join("".join(texts).split())
    np.testing.assert_allclose(np.nansum(drawn.heads, -1)[np.isfinite(drawn.heads[..., 0])], 1,
                               atol=1e-5)


@pytest.mark.parametrize("model", ["bert", "roberta"])
@pytest.mark.parametrize("weights", ["uniform", "classifier", "projected"])
def test_the_first_row_of_words_is_the_score(small_run, model, weights):
    drawn = attention(small_run.plan.models[model], small_run.document(11), words=True)
    scores = small_run.sql(f"SELECT {weights} FROM words WHERE model = '{model}' "
                           "AND document_id = 11 ORDER BY position")[weights]
    np.testing.assert_allclose(drawn.averaged(weights)[0, 1:-1], scores, atol=1e-5)


def test_words_beyond_the_maximum_are_not_seen(small_run):
    plan = dataclasses.replace(small_run.plan.models["bert"], max_length=8)
    found = small_run.document(3)
    drawn = attention(plan, found, words=True)
    matrices, encoded, tokenizer = eager_matrices(demo_models()["bert"], found.texts, 8)
    expected = words_by_loop(matrices[-1][2], encoded, tokenizer, found.texts)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(drawn.heads[2], expected, atol=1e-6)


def test_the_grid_has_a_panel_for_each_head(small_run):
    figure = heatmap.heatmap(small_run, ["bert"], 5, heads="all")
    drawn = attention(small_run.plan.models["bert"], small_run.document(5))
    panels = figure.axes[:4]
    for head, (ax, matrix) in enumerate(zip(panels, drawn.heads, strict=True)):
        np.testing.assert_array_equal(ax.images[0].get_array(), matrix)
        assert ax.get_title().startswith(f"head {head}, ")
        for weighting in ("classifier", "projected"):
            assert f"{weighting} {drawn.weights[weighting][head]:.2f}" in ax.get_title()
    assert len({ax.images[0].norm for ax in panels}) == 1
    assert panels[0].images[0].norm.vmax == drawn.heads.max()
    first = heatmap.heatmap(small_run, ["bert"], 5, heads="all", layer=0).axes[:4]
    assert [ax.get_title() for ax in first] == [f"head {head}" for head in range(4)]


def test_models_side_by_side_share_words_and_colours(small_run):
    figure = heatmap.heatmap(small_run, ["bert", "roberta"], 5, heads="projected")
    found = small_run.document(5)
    panels = dict(zip(("bert", "roberta"), figure.axes, strict=False))
    names = []
    for model, ax in panels.items():
        drawn = attention(small_run.plan.models[model], found, words=True)
        np.testing.assert_array_equal(ax.images[0].get_array(), drawn.averaged("projected"))
        assert ax.get_title().startswith(f"{model}: predicted")
        names.append(drawn.names)
    assert names[0] == names[1]
    assert panels["bert"].images[0].norm is panels["roberta"].images[0].norm
    assert [label.get_text() for label in panels["bert"].get_yticklabels()] == names[0]
    assert panels["bert"].get_ylim() == panels["roberta"].get_ylim()


@pytest.mark.parametrize(("n", "n_panels"), [
    (2, 1), (10, 1), (30, 1), (60, 1), (128, 1), (150, 2), (128, 2), (10, 12), (60, 12), (128, 12)])
def test_every_label_is_drawn_large_enough_and_apart(n, n_panels):
    random = np.random.default_rng(n)
    names = [heatmap._label(letters) for letters in
             ("".join(random.choice([*"abcdefghijg␣Ġ$_"], size)) for size in
              random.integers(1, 30, n))]
    panels = {f"head {i}": random.random((n, n)) for i in range(n_panels)}
    figure = heatmap._figure(names, panels, ["title"], "piece", root=False)
    figure.draw_without_rendering()
    shown = names[:128]
    for ax, axis in ((figure.axes[0], "y"), (figure.axes[n_panels - 1], "x")):
        labels = getattr(ax, f"get_{axis}ticklabels")()
        assert [label.get_text().replace(r"\$", "$") for label in labels] == shown
        assert all(label.get_visible() for label in labels)
        assert min(label.get_fontsize() for label in labels) * DPI / 72 >= 11
        boxes = sorted(getattr(label.get_window_extent(), f"interval{axis}").tolist()
                       for label in labels)
        assert all(end <= start + 0.5 for (_, end), (start, _) in pairwise(boxes))


@pytest.mark.parametrize(("suffix", "models", "how"), [
    ("png", ["bert", "roberta"], {}),
    ("png", ["bert"], {"words": True}),
    ("svg", ["roberta"], {"heads": "projected"}),
    ("PDF", ["bert"], {"heads": "all", "layer": 0}),
])
def test_a_picture_is_written(small_run, tmp_path, suffix, models, how):
    path = tmp_path / "new" / f"picture.{suffix}"
    draw(small_run, models, "5", path, **how)
    assert 5_000 < path.stat().st_size < 1_000_000
    if suffix == "png":
        picture = imread(path)
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 0.05
    elif suffix == "svg":
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    else:
        assert path.read_bytes().startswith(b"%PDF-")
        assert path.read_bytes().rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_hostile_pieces_are_drawn_as_text(tmp_path, suffix):
    names = [heatmap._label(name) for name in
             ("$x^2$", "$", "<b>&amp;", "--><script>", "a\nb", "\x00\x1b", "\u202eevil", "e\u0301",
              "שלום", "\\frac", "x" * 5000, "", "%")]
    assert max(map(len, names)) <= heatmap.LONGEST
    random = np.random.default_rng(1).random((len(names), len(names)))
    figure = heatmap._figure(names, {"a $ <b>": random}, ["$1 & $2", "-->"], "piece", root=True)
    figure.savefig(tmp_path / f"x.{suffix}")
    if suffix == "svg":
        ElementTree.parse(tmp_path / "x.svg")


def test_a_figure_shows_itself_in_a_notebook(small_run):
    figure = small_run.heatmap(5, "bert")
    assert isinstance(figure, Heatmap)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_signs_that_the_font_lacks_are_named(small_run, tmp_path, monkeypatch, caplog):
    figure = Heatmap()
    figure.suptitle("漢字")
    monkeypatch.setattr(heatmap, "heatmap", lambda *args, **how: figure)
    with caplog.at_level(logging.WARNING):
        draw(small_run, ["bert"], 5, tmp_path / "x.png")
    assert "lacks 2 of the characters" in caplog.text


@pytest.mark.parametrize(("models", "document", "name", "how", "message"), [
    (["gpt"], "5", "x.png", {}, "no model 'gpt'; it has bert and roberta"),
    (["bert"], "99999", "x.png", {}, "no document '99999'"),
    (["bert"], "5", "x.docx", {}, "pictures are"),
    (["bert"], "5", "x", {}, "pictures are"),
    (["bert"], "5", "x.png", {"layer": 2}, "no layer 2; .* has the layers 0 to 1"),
    (["bert"], "5", "x.png", {"layer": -3}, "no layer -3"),
    (["bert"], "5", "x.png", {"layer": 0, "heads": "projected"}, "known for the last layer alone"),
    (["bert"], "5", "x.png", {"heads": "norm"}, "--heads norm: write all, uniform"),
    (["bert", "roberta"], "5", "x.png", {"heads": "all"}, "draws one model"),
])
def test_what_is_not_there_is_named(small_run, tmp_path, models, document, name, how, message):
    with pytest.raises(UsageError, match=message):
        draw(small_run, models, document, tmp_path / name, **how)
    assert not (tmp_path / name).exists()


def test_a_family_whose_classifier_is_not_known_has_no_head_weights(tmp_path):
    saved("xlnet", tmp_path)
    drawn = attention(inspect("m", str(tmp_path), "last", [0, 1, 2]), document_of("a film"))
    assert [*drawn.weights] == ["uniform"]
    with pytest.raises(UsageError, match="families whose classifier clsight knows"):
        heatmap._averaged(drawn, "classifier")


def test_a_model_that_changed_since_the_run_is_not_drawn(small_run):
    changed = dataclasses.replace(small_run.plan.models["bert"], sha256="another")
    with pytest.raises(UsageError, match="bert has changed since the run was made"):
        attention(changed, small_run.document(1))
