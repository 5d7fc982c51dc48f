"""What cannot be analysed exactly is refused with the reason, before any work starts."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertForMaskedLM

from clsight.attention import IMPLEMENTATION
from clsight.errors import UsageError
from clsight.models import chosen_layers, class_labels, inspect, load, unavailable_scores
from conftest import DEMO
from small_models import MAX_LENGTH
from test_families import saved


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(DEMO / "bert", tmp_path / "bert")


def reconfigure(checkpoint, file="config.json", without=(), **changes):
    path = checkpoint / file
    changed = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in changed.items() if k not in without}))


def reweigh(checkpoint, change):
    """Let a function change the weights by name."""
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def refused(checkpoint, match, seen=(0, 1)):
    """In one line, and before anything is allocated or run."""
    with pytest.raises(UsageError, match=match) as told:
        inspect("m", str(checkpoint), "last", list(seen))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 700


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere", "no model folder at .*nowhere")


def test_a_checkpoint_without_a_head_is_refused(checkpoint):
    config = BertConfig.from_pretrained(checkpoint)
    BertForMaskedLM(config).save_pretrained(checkpoint)
    refused(checkpoint, "no classification head")


def test_missing_weights_are_never_invented(checkpoint):
    plan = inspect("m", str(checkpoint), "last", [0, 1])
    lacking = "layer.0.attention.self.key.weight"
    reweigh(checkpoint, lambda weights: weights.pop(f"bert.encoder.{lacking}"))
    refused(checkpoint, rf"lacks the weights bert\.encoder\.{lacking}, which would be random")
    with pytest.raises(UsageError, match=rf"lacks the weights .*{lacking}"):
        load(plan, torch.float32, "cpu", IMPLEMENTATION)


def test_weights_under_names_of_old_are_read(checkpoint):
    """TensorFlow's names of LayerNorm's weights, which transformers renames."""
    def rename(weights):
        for name in [name for name in weights if "LayerNorm" in name]:
            kind = {"weight": "gamma", "bias": "beta"}[name.rpartition(".")[2]]
            weights[name.rpartition(".")[0] + f".{kind}"] = weights.pop(name)

    reweigh(checkpoint, rename)
    plan = inspect("m", str(checkpoint), "last", [0, 1])
    renamed, own = (load(dataclasses.replace(plan, path=str(path)), torch.float32, "cpu").model
                    for path in (checkpoint, DEMO / "bert"))
    for (name, one), other in zip(own.named_parameters(), renamed.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta", "xlnet"])
def test_opening_in_half_precision_leaves_other_threads_alone(family, tmp_path, monkeypatch):
    """torch's default is one for the whole process: tensors made meanwhile would be halves."""
    saved(family, tmp_path)
    plan, defaults = inspect("m", str(tmp_path), "last", [0, 1, 2]), []
    monkeypatch.setattr(torch, "set_default_dtype", defaults.append)
    half, whole = (load(plan, dtype, "cpu").model for dtype in (torch.bfloat16, torch.float32))
    assert {*defaults} <= {torch.float32}
    for one, other in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())
    for one, other in zip(half.buffers(), whole.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_pickle_is_not_opened(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(checkpoint, "only as a pickle")


def test_broken_weights_are_named(checkpoint):
    weights = (checkpoint / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    for broken in (b"", b"junk", weights[:100], weights[:header], weights[:-1], weights + b"x",
                   b"\xff" * 8 + weights[8:], weights[:8] + b"[" + weights[9:]):
        (checkpoint / "model.safetensors").write_bytes(broken)
        refused(checkpoint, "model.safetensors cannot be read as safetensors: .*download it again")


def test_weights_that_change_behind_the_look_at_them_are_named(checkpoint):
    """What only opening can find is a sentence as well."""
    plan = inspect("m", str(checkpoint), "last", [0, 1])
    whole = (checkpoint / "model.safetensors").read_bytes()

    def other_shape(weights):
        weights["classifier.weight"] = torch.zeros(3, 64)

    for change in (lambda: (checkpoint / "model.safetensors").write_bytes(whole[:-1]),
                   lambda: (checkpoint / "model.safetensors").unlink(),
                   lambda: reconfigure(checkpoint, hidden_size=63)):
        config = (checkpoint / "config.json").read_bytes()
        change()
        with pytest.raises(UsageError, match="cannot be opened: ") as told:
            load(plan, torch.float32, "cpu")
        assert "\n" not in str(told.value)
        (checkpoint / "model.safetensors").write_bytes(whole)
        (checkpoint / "config.json").write_bytes(config)
    reweigh(checkpoint, other_shape)
    with pytest.raises(UsageError, match="cannot be opened: "):
        load(plan, torch.float32, "cpu")


def test_quantised_weights_are_refused(checkpoint):
    reconfigure(checkpoint, quantization_config={"quant_method": "bitsandbytes"})
    refused(checkpoint, "holds quantised weights")
    reconfigure(checkpoint, without=["quantization_config"])

    def quantise(weights):
        weights["classifier.weight"] = weights["classifier.weight"].to(torch.int8)

    reweigh(checkpoint, quantise)
    refused(checkpoint, r"classifier\.weight are stored as I8; clsight reads BF16, F16, F32")


def sharded(checkpoint):
    """The weights in two files and an index."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        index |= dict.fromkeys(part, f"model-0000{i}-of-00002.safetensors")
        save_file({name: weights[name] for name in part}, checkpoint / index[part[0]],
                  metadata={"format": "pt"})
    path = checkpoint / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def test_weights_in_several_files_are_read_and_a_missing_one_is_named(checkpoint):
    whole = inspect("m", str(checkpoint), "last", [0, 1])
    index = sharded(checkpoint)
    plan = inspect("m", str(checkpoint), "last", [0, 1])
    assert dataclasses.replace(plan, sha256=whole.sha256) == whole
    load(plan, torch.float32, "cpu")
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    refused(checkpoint, r"lacks model-00002-of-00002\.safetensors, which "
                        r"model\.safetensors\.index\.json names")
    for map_, match in (({"a": "../../secret.safetensors"}, "which is not in the folder"),
                        ({}, "names no files"), ([], "names no files")):
        index.write_text(json.dumps({"weight_map": map_}))
        refused(checkpoint, match)
    index.write_text("[1]")
    refused(checkpoint, r"index\.json holds a list, not an object")
    index.unlink()
    refused(checkpoint, r"holds model-00001-of-00002\.safetensors, and neither model\.safetensors")


def test_a_folder_without_weights_is_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "holds no weights")


def test_a_broken_configuration_is_named(checkpoint):
    for broken in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        (checkpoint / "config.json").write_bytes(broken)
        refused(checkpoint, r"config\.json cannot be read: ")
    for other, kind in ((b"[]", "list"), (b"7", "int"), (b"null", "NoneType")):
        (checkpoint / "config.json").write_bytes(other)
        refused(checkpoint, rf"config\.json holds a {kind}, not an object")
    (checkpoint / "config.json").write_text("{}")
    refused(checkpoint, r"config\.json does not say model_type, the family of the model")
    (checkpoint / "config.json").unlink()
    refused(checkpoint, r"has no config\.json")


@pytest.mark.parametrize("name", ["model_type", "num_hidden_layers", "num_attention_heads"])
def test_what_a_configuration_must_say_is_not_guessed(checkpoint, name):
    reconfigure(checkpoint, without=[name])
    refused(checkpoint, rf"config\.json does not say {name}")


@pytest.mark.parametrize(("changes", "match"), [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; .* from 1 to 1,000"),
    ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'; it must be a whole number"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5; it must be a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be"),
    ({"num_hidden_layers": [1] * 10**6}, r"num_hidden_layers is \[1, 1, .*\.\.\.\]; it must be"),
    ({"num_hidden_layers": 900}, "lacks the weights bert.encoder.layer.10.* which would be random"),
    ({"num_attention_heads": 10**9}, "num_attention_heads is 1000000000; it must be"),
    ({"num_attention_heads": "4"}, "num_attention_heads is '4'; it must be"),
    ({"num_attention_heads": 5}, "no classifier that config.json describes: .*multiple of"),
    ({"num_labels": 10**9, "id2label": None}, "num_labels is 1000000000; it must be"),
    ({"hidden_size": 10**15}, "config.json"), ({"hidden_size": "64"}, "config.json|configuration"),
    ({"hidden_size": 128}, "is 1200 x 64 in the weights and 1200 x 128 by config.json"),
    ({"intermediate_size": 10**15}, "config.json"),
    ({"vocab_size": 10**18}, "config.json"), ({"vocab_size": -1}, "config.json"),
    ({"vocab_size": 1000}, "word_embeddings.weight is 1200 x 64 in the weights and 1000 x 64"),
    ({"max_position_embeddings": 512}, "is 128 x 64 in the weights and 512 x 64 by config.json"),
    ({"max_position_embeddings": 10**30}, "config.json"),
    ({"max_position_embeddings": 0}, "is 128 x 64 in the weights and 0 x 64 by config.json"),
    ({"max_position_embeddings": -5}, "config.json"),
    ({"max_position_embeddings": "many"}, "config.json|configuration"),
    ({"hidden_act": "no such thing"}, "no classifier that config.json describes: .*no such thing"),
    ({"hidden_act": {"a": 1}}, "config.json|configuration"),
    ({"dtype": "float99"}, "configuration cannot be read"),
    ({"model_type": "no such family"}, "configuration cannot be read: .*no such family"),
    ({"model_type": "gpt9\nx\x1b[2J"}, "configuration cannot be read"),
    ({"model_type": ["bert"]}, "does not say model_type"),
    ({"model_type": "vit"}, "no classifier that config.json describes|has no classification head"),
    ({"architectures": "x", "layer_norm_eps": "small"}, "config.json|configuration"),
])
def test_hostile_configurations_are_refused(checkpoint, changes, match):
    reconfigure(checkpoint, **changes)
    refused(checkpoint, match)


@pytest.mark.parametrize(("changes", "match"), [
    ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"3 classes .id2label., .*weight. have 2"),
    ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels is 3, and id2label names 2"),
    ({"id2label": {"1": "a", "2": "b"}}, "numbers the classes 1 and 2; number them from 0 to 1"),
    ({"id2label": {"0": "a", "zero": "b"}}, "numbers the classes 0 and zero; number them from 0"),
    ({"id2label": {"0": "a", "-1": "b"}}, "numbers the classes 0 and -1; number them from 0"),
    ({"id2label": {"0": "a", "00": "b"}}, "numbers the classes 0 and 00; number them from 0"),
    ({"id2label": {}}, "numbers the classes none; number them from 0"),
    ({"id2label": ["a", "b"]}, r"must map class numbers to names, and is \['a', 'b'\]"),
    ({"id2label": {"0": "a", "1": 1}}, "must map class numbers to names"),
    ({"num_labels": 3, "id2label": None}, "3 classes .*weight. have 2"),
])
def test_classes_must_be_those_of_the_head(checkpoint, changes, match):
    reconfigure(checkpoint, label2id=None, **changes)
    refused(checkpoint, match)


def test_names_that_two_classes_share_are_refused_where_they_are_read(checkpoint):
    reconfigure(checkpoint, id2label={"0": "good", "1": "good"}, label2id=None)
    refused(checkpoint, "m names several classes good; give each its own name", ["bad", "good"])
    assert inspect("m", str(checkpoint), "last", [0, 1]).labels == (0, 1)


def test_a_tokenizer_of_another_model_is_refused(checkpoint, tmp_path):
    shutil.copy(DEMO / "roberta" / "tokenizer.json", checkpoint)
    shutil.copy(DEMO / "roberta" / "tokenizer_config.json", checkpoint)
    refused(checkpoint, r"pieces numbers up to 1,499, and the embeddings have the rows 0 to 1,199")


def test_special_pieces_beyond_the_embeddings_are_refused(checkpoint):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [1200]
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    reconfigure(checkpoint, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    refused(checkpoint, r"pieces numbers up to 1,200, and the embeddings have the rows 0 to 1,199")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": 7}', b"\xff" * 99])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_tokenizers_are_named(checkpoint, file, content):
    (checkpoint / file).write_bytes(content)
    if (file, content) == ("tokenizer_config.json", b"{}"):  # which says nothing that counts here
        assert inspect("m", str(checkpoint), "last", [0, 1]).max_length == 128
    else:
        refused(checkpoint, "tokenizer")


def test_other_padding_is_told(checkpoint, caplog):
    reconfigure(checkpoint, pad_token_id=3)
    inspect("m", str(checkpoint), "last", [0, 1])
    (said,) = [record for record in caplog.records if record.event == "warning"]
    assert said.message.startswith("m: pad_token_id is 0 by the tokenizer and 3 by config.json")
    assert (said.levelname, said.fields) == ("WARNING", {"model": "m"})


@pytest.mark.parametrize("padding", [None, -1])
def test_positions_that_count_from_no_padding_are_refused(tmp_path, padding):
    folder = shutil.copytree(DEMO / "roberta", tmp_path / "roberta")
    reconfigure(folder, pad_token_id=padding)
    refused(folder, "pad_token_id is (None|-1); roberta models count positions from it|config")


def test_code_that_comes_with_a_checkpoint_is_never_run(checkpoint, tmp_path):
    """With the standard input closed, so that a question would end it."""
    canary = tmp_path / "canary"
    (checkpoint / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').write('run')\n"
        "from transformers import BertConfig as Config, BertTokenizerFast as Tokenizer\n"
        "from transformers import BertForSequenceClassification as Model\n")
    reconfigure(checkpoint, auto_map={
        "AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"})
    reconfigure(checkpoint, "tokenizer_config.json",
                auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]})
    code = ("import torch; from clsight.attention import IMPLEMENTATION\n"
            "from clsight.models import inspect, load\n"
            f"plan = inspect('m', {str(checkpoint)!r}, 'last', [0, 1])\n"
            "load(plan, torch.float32, 'cpu')")
    known = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL,
                           capture_output=True, text=True, check=False)
    assert known.returncode == 0, known.stderr
    assert "code of its own, which is not run; it is read as the bert model" in known.stderr
    reconfigure(checkpoint, model_type="evil")
    unknown = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL,
                             capture_output=True, text=True, check=False)
    assert "UsageError" in unknown.stderr
    assert "the configuration cannot be read: The repository" in unknown.stderr
    assert not canary.exists()


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
    reweigh(checkpoint, lambda weights: weights.update(
        {name: weights[name][:1].clone() for name in ("classifier.weight", "classifier.bias")}))
    assert inspect("m", str(checkpoint), "last", [0, 1]).labels == (0, 1)
    assert inspect("m", str(checkpoint), "last", ["0", "1"]).labels == ("0", "1")
    refused(checkpoint, "one logit .sigmoid., the dataset has the labels bad and good",
            seen=("bad", "good"))


def test_activations_without_a_rule_make_the_scores_that_need_one_unavailable(checkpoint):
    assert unavailable_scores(str(checkpoint)) == {}
    reconfigure(checkpoint, hidden_act="mish")
    assert unavailable_scores(str(checkpoint)) == {
        "conservative": "it has no rule for the activation mish",
        "deeplift": "it has no rule for the activation mish",
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


@pytest.mark.parametrize(("stated", "expected"), [
    (10**30, 128), (1e30, 128), (0, 128), (-3, 128), (None, 128), (16, 16), (16.0, 16), (3, 3),
])
def test_the_maximum_length_fits_positions_and_tokenizer(checkpoint, stated, expected):
    reconfigure(checkpoint, "tokenizer_config.json", model_max_length=stated)
    assert inspect("m", str(checkpoint), "last", [0, 1]).max_length == expected
    reconfigure(checkpoint, "tokenizer_config.json", without=["model_max_length"])
    assert inspect("m", str(checkpoint), "last", [0, 1]).max_length == 128


@pytest.mark.parametrize(("stated", "match"), [
    ("many", "model_max_length is 'many', not a number"),
    ([128], r"model_max_length is \[128\], not a number"),
    (True, "model_max_length is True, not a number"),
    (2, r"a document may have 2 pieces .*, of which 2 are special ones"),
    (1, r"a document may have 1 pieces .*, of which 2 are special ones"),
])
def test_maximum_lengths_that_leave_nothing_are_refused(checkpoint, stated, match):
    reconfigure(checkpoint, "tokenizer_config.json", model_max_length=stated)
    refused(checkpoint, match)


def test_positions_count_from_the_padding(tmp_path):
    folder = shutil.copytree(DEMO / "roberta", tmp_path / "roberta")
    reconfigure(folder, "tokenizer_config.json", model_max_length=10**30)
    assert inspect("m", str(folder), "last", [0, 1]).max_length == 130 - 2
    reconfigure(folder, pad_token_id=128)
    refused(folder, "a document may have 1 pieces")


@pytest.mark.parametrize(("positions", "expected"), [
    (MAX_LENGTH + 2, MAX_LENGTH + 2), (10**30, 4096), (0, 4096), (-1, 4096),
])
def test_without_a_table_of_positions_an_absurd_maximum_is_none(tmp_path, positions, expected):
    saved("modernbert", tmp_path / "model")
    reconfigure(tmp_path / "model", max_position_embeddings=positions)
    reconfigure(tmp_path / "model", "tokenizer_config.json", model_max_length=10**30)
    assert inspect("m", str(tmp_path / "model"), "last", [0, 1, 2]).max_length == expected
