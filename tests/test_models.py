"""What cannot be analysed exactly is refused with the reason, before any work starts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertForMaskedLM

from clsight.attention import IMPLEMENTATION
from clsight.errors import UsageError
from clsight.models import chosen_layers, class_labels, inspect, load, unavailable_scores
from conftest import DEMO


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(DEMO / "bert", tmp_path / "bert")


def reconfigure(checkpoint, **changes):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(checkpoint, match, seen=(0, 1)):
    with pytest.raises(UsageError, match=match):
        inspect("m", str(checkpoint), "last", list(seen))


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere", "no model folder at .*nowhere")


def test_a_checkpoint_without_a_head_is_refused(checkpoint):
    config = BertConfig.from_pretrained(checkpoint)
    BertForMaskedLM(config).save_pretrained(checkpoint)
    refused(checkpoint, "no classification head")


def test_missing_weights_are_never_invented(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    dropped = next(name for name in weights if "layer.0.attention.self.key.weight" in name)
    del weights[dropped]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    plan = inspect("m", str(checkpoint), "last", [0, 1])
    with pytest.raises(UsageError, match=r"lacks the weights .*key\.weight"):
        load(plan, torch.float32, "cpu", IMPLEMENTATION)


def test_a_pickle_is_not_opened(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(checkpoint, "only as a pickle")


def test_broken_weights_are_named(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"junk")
    refused(checkpoint, "cannot be read as safetensors")


def test_a_folder_without_weights_is_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "holds no weights")


def test_a_broken_configuration_is_named(checkpoint):
    (checkpoint / "config.json").write_text("{")
    refused(checkpoint, "configuration cannot be read")


@pytest.mark.parametrize(("changes", "match"), [
    ({"problem_type": "multi_label_classification"}, "multi_label_classification heads"),
    ({"problem_type": "regression"}, "regression heads"),
    ({"model_type": "longformer"}, "longformer model: it attends by windows"),
    ({"model_type": "deberta-v2"}, "has no classification head"),
])
def test_other_heads_and_families_are_refused_by_name(checkpoint, changes, match):
    reconfigure(checkpoint, **changes)
    refused(checkpoint, match)


def test_one_logit_stands_for_two_classes_which_must_be_numbered(checkpoint):
    reconfigure(checkpoint, id2label={"0": "good"}, label2id={"good": 0}, problem_type=None)
    assert inspect("m", str(checkpoint), "last", [0, 1]).labels == (0, 1)
    assert inspect("m", str(checkpoint), "last", ["0", "1"]).labels == ("0", "1")
    refused(checkpoint, "one logit .sigmoid., the dataset has the labels bad and good",
            seen=("bad", "good"))


def test_activations_without_a_conserving_rule_make_conservative_unavailable(checkpoint):
    assert unavailable_scores(str(checkpoint)) == {}
    reconfigure(checkpoint, hidden_act="mish")
    assert unavailable_scores(str(checkpoint)) == {
        "conservative": "it has no rule for the activation mish"
    }


def test_labels_are_spelled_as_in_the_dataset():
    config = AutoConfig.from_pretrained(DEMO / "bert")
    assert class_labels("m", config, [0, 1]) == (0, 1)
    assert class_labels("m", config, ["0", "1"]) == ("0", "1")
    assert class_labels("m", config, ["positive"]) == ("negative", "positive")
    with pytest.raises(UsageError, match=r"negative and positive, .*has bad and good"):
        class_labels("m", config, ["bad", "good"])


@pytest.mark.parametrize(("wanted", "layers"), [
    ("last", (11,)), ("all", tuple(range(12))), ("-1,-2", (10, 11)), ("0-2", (0, 1, 2, 11)),
    (" 3 , 5-6", (3, 5, 6, 11)),
])
def test_layers(wanted, layers):
    assert chosen_layers(wanted, 12) == layers


@pytest.mark.parametrize("wanted", ["12", "-13", "first", "", "1-", "0-12"])
def test_layers_that_are_not_there(wanted):
    with pytest.raises(UsageError, match="--layers"):
        chosen_layers(wanted, 12)


def test_the_maximum_length_fits_positions_and_tokenizer(checkpoint):
    positions = AutoConfig.from_pretrained(checkpoint).max_position_embeddings
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for stated, expected in ((10**30, positions), (16, 16)):
        path.write_text(json.dumps(config | {"model_max_length": stated}))
        assert inspect("m", str(checkpoint), "last", [0, 1]).max_length == expected
