"""Documents that misbehave work, or are told with their rows and do not stop the others."""

import datetime
import decimal
import json
import shutil
import uuid

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clsight import pipeline, readers, shards
from clsight.dataset import Dataset, bad_documents, refuse_bad_documents, write_documents
from clsight.errors import ClsightError, UsageError
from conftest import demo_models
from reference import Eager

WELL_FORMED = [
    "a film",
    "long" * 25_000,  # one word
    ("w" * 124 + " ") * 8_000,  # a megabyte
    "\x00", "nul \x00 and \x01\x02\x7f\x80 controls", "\r\n \x0b\x0c line\u2028 ends\x85",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f44e\U0001f3fd",
    "\U0001f1eb\U0001f1f7", "فِيلْم رائع جدا", "שָׁלוֹם \u202eabc\u202c",
    "e\u0301\u0302\u0303 Z\u0351\u036b\u0343", "\u0301\u0302",
    "\u200b\u200d\ufeff", "\ufffd\uffff\ue000\U0010ffff",
    "ꙮꙮ \U00013000\U00012000",  # unknown to any tokenizer
    "日本語の映画", "İstanbul ﬁn ß ẞ",
    "[SEP]", "so [SEP] bad </s> [CLS] <s> [MASK] <mask>", "<script>alert('x')</script>&amp;<!--",
    "'); DROP TABLE documents; --", "'\"`\\ \\n %s {0} $1 ?", "NA", "null", "." * 5000,
]


def table_of(path, shard_size=3, labels=(0, 1), **columns):
    """The documents of a dataset, from their shards."""
    columns = {"text": "text", "label": "label"} | columns
    folder = path.parent / "documents"
    n, _ = write_documents(Dataset(str(path), **columns), {"m": list(labels)}, folder, shard_size)
    table = pq.read_table(folder)
    assert table.num_rows == n
    assert table["row"].to_pylist() == list(range(n))
    table.validate(full=True)
    assert all(len(reason.splitlines()) == 1 for reason in table["reason"].to_pylist() if reason)
    return table


def saved(tmp_path, columns, name="d.parquet"):
    pq.write_table(pa.table(columns), tmp_path / name)
    return tmp_path / name


def lines_of(tmp_path, *records):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\n".join(
        r if isinstance(r, bytes) else json.dumps(r).encode() for r in records))
    return path


def invalid(*values):
    """A column of strings that are these bytes, which Arrow takes on trust."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(),
                                  pa.large_binary(), pa.dictionary(pa.int32(), pa.string())])
def test_well_formed_texts_work_and_any_reader_of_the_shards_sees_them(tmp_path, kind):
    texts = pa.array(WELL_FORMED)
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    found = table_of(saved(tmp_path, {"text": texts, "label": [1] * len(texts)}))
    assert found["reason"].null_count == len(found)
    folder = tmp_path / "documents"
    seen = [
        found["text"].to_pylist(), pl.read_parquet(folder)["text"].to_list(),
        [text for text, in duckdb.sql(
            f"SELECT text FROM read_parquet('{folder}/*.parquet') ORDER BY \"row\"").fetchall()],
    ]
    assert seen == [WELL_FORMED] * 3


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n", "\u3000\xa0\u2028", "\x1c\x1f"])
def test_texts_of_white_space_are_empty(tmp_path, blank):
    found = table_of(saved(tmp_path, {"text": ["a", blank, None], "label": [1, 1, 1]}))
    assert found["reason"].to_pylist() == [None, "text is empty", "text is null"]


def test_every_text_without_a_word_is_empty(tmp_path):
    characters = [chr(i) for i in range(0x110000) if chr(i).isspace() or i % 1000 == 0
                  if not 0xD800 <= i < 0xE000]
    found = table_of(saved(tmp_path, {"text": characters, "label": [1] * len(characters)}),
                     shard_size=5000)
    empty = pc.equal(pc.list_value_length(found["form"]), 0)
    assert pc.all(pc.is_in(found.filter(empty)["reason"], pa.array(["text is empty"]))).as_py()
    assert pc.sum(empty).as_py() >= 21


NOT_UNICODE = "text is not valid Unicode (UTF-8)"


@pytest.mark.parametrize(("name", "content", "stored"), [
    ("d.csv", b"text,label\na,1\ncaf\xe9,1\n\xe2\x82,1\nb,0\n",
     ["a", "caf\ufffd", "\ufffd", "b"]),
    ("d.jsonl", b'{"text":"a","label":1}\n{"text":"caf\xe9","label":1}\n{"text":"\\ud800",'
                b'"label":1}\n{"text":"b","label":0}', ["a", "caf", "", "b"]),
    ("d.jsonl", b'{"text":"a","label":1}\n{"text":"\xed\xa0\x80","label":1}\n{"text":"x\\udcc3'
                b'\\udca9","label":1}\n{"text":"\\ud83d\\ude00","label":0}', ["a", "", "x", "😀"]),
    ("d.parquet", invalid(b"a", b"caf\xe9", b"\xc0\x80", b"b"), ["a", "caf\ufffd", "\ufffd\ufffd",
                                                                "b"]),
])
def test_texts_that_are_not_unicode_are_told_and_stored_with_marks(tmp_path, name, content, stored):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        saved(tmp_path, {"text": content, "label": [1, 1, 1, 0]})
    found = table_of(tmp_path / name)
    assert found["reason"].to_pylist() == [None, NOT_UNICODE, NOT_UNICODE, None]
    marked = [text.rstrip("\ufffd") if name == "d.jsonl" else text
              for text in found["text"].to_pylist()]
    assert marked == stored
    assert pl.read_parquet(tmp_path / "documents").height == 4


def test_other_columns_that_are_not_unicode(tmp_path):
    columns = {
        "text": ["a", "b", "c", "d"], "pair": invalid(b"p", b"\xff", b"p", b"p"),
        "label": invalid(b"neg", b"neg", b"n\xffg", b"neg"),
        "id": invalid(b"1", b"2", b"3", b"\xff"), "group": invalid(b"\xff", b"g", b"g", b"g"),
    }
    found = table_of(saved(tmp_path, columns), labels=["neg"], text_pair="pair", id="id",
                     group_by="group")
    assert found["reason"].to_pylist() == [
        None, "second text is not valid Unicode (UTF-8)", "label is not valid Unicode (UTF-8)",
        "id is not valid Unicode (UTF-8)"]
    assert found["slice"].to_pylist() == ["\ufffd", "g", "g", "g"]
    assert Dataset(str(tmp_path / "d.parquet"), "text", "label").labels() == ["neg"]


UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


@pytest.mark.parametrize(("ids", "expected"), [
    (pa.array([3, 1], pa.int8()), [3, 1]), (pa.array([3, 1], pa.uint64()), [3, 1]),
    (pa.array([2**64 - 1, 1], pa.uint64()), ["18446744073709551615", "1"]),
    (pa.array([2.0, 1.0]), [2, 1]), (pa.array([True, False]), [1, 0]),
    (pa.array(["a'\"<b>;--", "\n"]), ["a'\"<b>;--", "\n"]),
    (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    (pa.array([1, 2]).dictionary_encode(), [1, 2]),
    (pa.array([datetime.date(2020, 1, 2), datetime.date(1, 1, 1)]), ["2020-01-02", "0001-01-01"]),
    (pa.array([datetime.datetime(2020, 1, 2), datetime.datetime(2021, 1, 1)], pa.timestamp("s")),
     ["2020-01-02 00:00:00.000", "2021-01-01 00:00:00.000"]),
    (pa.array([decimal.Decimal("1.50"), decimal.Decimal("-2.00")]), ["1.50", "-2.00"]),
    (pa.array([UUID.bytes, b"\0" * 16], pa.binary(16)), [str(UUID), str(uuid.UUID(int=0))]),
    (pa.array([UUID.bytes, b"\0" * 16], pa.uuid()), [str(UUID), str(uuid.UUID(int=0))]),
    (pa.array([b"a\xff", b""]), ["61ff", ""]),
])
def test_ids_are_of_any_type(tmp_path, ids, expected):
    path = saved(tmp_path, {"text": ["a", "b"], "label": [0, 1], "id": ids})
    found = table_of(path, id="id")
    assert found["document_id"].to_pylist() == expected
    assert found["reason"].null_count == 2


@pytest.mark.parametrize("ids", [[[1], [2]], [{"a": 1}, {"a": 2}]])
def test_ids_and_groups_of_parts_are_a_wrong_call(tmp_path, ids):
    path = str(saved(tmp_path, {"text": ["a", "b"], "label": [0, 1], "my id": ids}))
    for option, columns in (("id", {"id": "my id"}), ("group-by", {"group_by": "my id"})):
        with pytest.raises(UsageError, match=rf"--{option} my id: the column holds (list|struct)<"):
            _ = Dataset(path, "text", "label", **columns).schema


def test_ids_that_cannot_be(tmp_path):
    path = saved(tmp_path, {"text": list("abcde"), "label": [0] * 5,
                            "id": [1.0, None, 1.5, float("nan"), float("inf")]})
    found = table_of(path, id="id")
    assert found["reason"].to_pylist() == [None, "id is missing", "id 1.5 is not a whole number",
                                           "id is missing", "id inf is not a whole number"]


def test_ids_of_csv_are_texts(tmp_path):
    (tmp_path / "d.csv").write_text("id,text,label\n007,a,1\n,b,1\n7,c,1\n")
    found = table_of(tmp_path / "d.csv", id="id")
    assert found["document_id"].to_pylist() == ["007", None, "7"]
    assert found["reason"].to_pylist() == [None, "id is missing", None]


def test_an_id_of_another_type_in_a_later_batch_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS", 2)
    ids = (1, 2, "x", "4", 2**70)
    path = lines_of(tmp_path, *({"text": "t", "label": 1, "id": i} for i in ids))
    assert table_of(path, id="id")["reason"].to_pylist() == [
        None, None, "id 'x' is not a whole number", None,
        "id '1180591620717411303424' is too large (a whole number has 64 bits)"]


@pytest.mark.parametrize("shard_size", [1, 2, 3, 100])
def test_repeated_ids_are_those_of_the_first_document_that_can_be_used(tmp_path, shard_size):
    ids = ["a", "b", "a", "c", "a", "b\n", "b\n", "c", None, None]
    texts = ["", "x", "x", "x", "x", "x", "x", "x", "x", "x"]
    path = saved(tmp_path, {"text": texts, "label": [1] * 10, "id": ids})
    assert table_of(path, shard_size, id="id")["reason"].to_pylist() == [
        "text is empty", None, None, None, "id 'a' is that of row 2 already", None,
        r"id 'b\n' is that of row 5 already", "id 'c' is that of row 3 already", "id is missing",
        "id is missing"]
    assert [path.name for path in (tmp_path / "documents").iterdir() if path.suffix != ".parquet"
            ] == []


def test_numbers_are_repeated_ids_too(tmp_path):
    path = saved(tmp_path, {"text": ["x"] * 3, "label": [1] * 3, "id": [5, 7, 5]})
    assert table_of(path, id="id")["reason"].to_pylist() == [
        None, None, "id 5 is that of row 0 already"]


@pytest.mark.parametrize(("labels", "known", "expected"), [
    ([0.0, 1.0, 0.5, None], [0, 1], [0, 1, "label 0.5 is not a whole number", "label is missing"]),
    ([decimal.Decimal("1.0"), decimal.Decimal("0.5")], [0, 1],
     [1, "label 0.5 is not a whole number"]),
    ([1, 7], [0, 1], [1, "label 7 is not among m's: 0 and 1"]),
    (["0", "1"], ["0", "1"], ["0", "1"]),
    (["<b>'\";--", "b\nc", "x" * 100], ["<b>'\";--"],
     ["<b>'\";--", "label 'b\\nc' is not among m's: '<b>\\'\";--'",
      f"label '{'x' * 40}'… is not among m's: '<b>\\'\";--'"]),
    ([True, False], [0, 1], [1, 0]),
    (pa.array([2**63, 1], pa.uint64()), [0, 1],
     ["label 9223372036854775808 is too large (a whole number has 64 bits)", 1]),
])
def test_labels_are_names_or_whole_numbers(tmp_path, labels, known, expected):
    path = saved(tmp_path, {"text": ["a"] * len(labels), "label": labels})
    found = table_of(path, labels=known)
    assert [reason or label for label, reason in zip(
        found["label"].to_pylist(), found["reason"].to_pylist(), strict=True)] == expected


@pytest.mark.parametrize(("labels", "expected"), [
    (["1", " 0", "+1", "1.0", "1e0", "true", "False"], [1, 0, 1, 1, 1, 1, 0]),
    (["1", "0", "x", "NA", "0.5", "", "1.5"],
     [1, 0, "label 'x' is not a whole number", "label 'NA' is not a whole number",
      "label '0.5' is not a whole number", "label is missing",
      "label '1.5' is not a whole number"]),
    (["0", "1", "1" * 30], [0, 1, f"label '{'1' * 30}' is too large (a whole number has 64 bits)"]),
    (["0x1", "1", "0", "1", "0", "１", "1_0"],
     ["label '0x1' is not a whole number", 1, 0, 1, 0, "label '１' is not a whole number",
      "label '1_0' is not a whole number"]),
])
def test_labels_of_csv_are_numbers_where_most_are(tmp_path, labels, expected):
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"a,{label}\n" for label in labels))
    found = table_of(tmp_path / "d.csv")
    assert [label if reason is None else reason for label, reason in zip(
        found["label"].to_pylist(), found["reason"].to_pylist(), strict=True)] == expected


def test_labels_of_csv_are_names_where_most_are(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,pos\nb,NA\nc,null\nd,\ne,1\n")
    found = table_of(tmp_path / "d.csv", labels=["pos", "NA", "null"])
    assert found["label"].to_pylist() == ["pos", "NA", "null", None, "1"]
    assert found["reason"].to_pylist()[3:] == [
        "label is missing", "label '1' is not among m's: 'pos', 'NA' and 'null'"]


def test_a_label_that_misfits_in_a_later_batch_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS", 2)
    (tmp_path / "d.csv").write_text("text,label\na,1\nb,0\nc,x\nd,1\n")
    assert table_of(tmp_path / "d.csv")["reason"].to_pylist() == [
        None, None, "label 'x' is not a whole number", None]


def test_labels_that_are_dates_are_a_wrong_call(tmp_path):
    path = saved(tmp_path, {"text": ["a"], "label": [datetime.date(2020, 1, 1)]})
    with pytest.raises(UsageError, match=r"--label label: the column holds date32\[day\]; int"):
        _ = Dataset(str(path), "text", "label").label_type


@pytest.mark.parametrize(("groups", "expected"), [
    (pa.array([UUID.bytes, None], pa.uuid()), [str(UUID), None]), ([1.5, 2.0], ["1.5", "2"]),
    ([True, None], ["true", None]), ([b"g", b"h"], ["g", "h"]), (pa.nulls(2), [None, None]),
    (pa.array([datetime.date(2020, 1, 2)] * 2), ["2020-01-02"] * 2),
])
def test_groups_are_of_any_type(tmp_path, groups, expected):
    path = saved(tmp_path, {"text": ["a", "b"], "label": [0, 1], "group": groups})
    found = table_of(path, group_by="group")
    assert found["slice"].to_pylist() == expected
    assert found["reason"].null_count == 2


def test_one_column_may_serve_twice(tmp_path):
    path = saved(tmp_path, {"text": ["a", "b"], "label": [0, 1]})
    found = table_of(path, group_by="label", id="text")
    assert found["slice"].to_pylist() == ["0", "1"]
    assert found["document_id"].to_pylist() == ["a", "b"]


def test_columns_may_be_called_anything(tmp_path):
    names = ["<b>text</b>", "'; DROP TABLE x; --", "problem", "row"]
    path = saved(tmp_path, dict(zip(names, [["a"], [1], ["i"], ["g"]], strict=True)))
    found = table_of(path, text=names[0], label=names[1], id=names[2], group_by=names[3])
    assert found.select(["text", "label", "document_id", "slice", "reason"]).to_pylist() == [
        {"text": "a", "label": 1, "document_id": "i", "slice": "g", "reason": None}]


def test_rows_that_cannot_be_read_keep_their_places_among_the_others(tmp_path):
    path = lines_of(tmp_path, {"text": "a", "label": 1}, b"{broken", {"text": "b", "label": 5},
                    b"[]", {"text": " ", "label": 0}, {"text": "c", "label": 0})
    assert table_of(path, shard_size=2)["reason"].to_pylist() == [
        None, "line 2: broken JSON at column 2 (Expecting property name enclosed in double quotes)",
        "label 5 is not among m's: 0 and 1", "line 4: a list instead of an object",
        "text is empty", None]
    with pytest.raises(ClsightError, match=r"^4 of the documents.*line 2: broken.* in row 1; "):
        refuse_bad_documents(tmp_path / "documents")


def test_of_many_reasons_some_are_named(tmp_path):
    path = saved(tmp_path, {"text": ["a"] * 50, "label": list(range(50))})
    table_of(path)
    assert bad_documents(tmp_path / "documents").num_rows == 48
    with pytest.raises(ClsightError, match=r"label 11 is not .* in row 11; 38 more reasons \(rows"):
        refuse_bad_documents(tmp_path / "documents")


class Changing(Dataset):
    """A dataset whose file gets another row as soon as it is opened."""

    def rows(self):
        with open(self.path, "a") as file:
            file.write("late,1\n")
        return super().rows()


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,1\n")
    dataset = Changing(str(tmp_path / "d.csv"), "text", "label")
    with pytest.raises(ClsightError, match=r"d.csv changed while it was read.*at rest"):
        write_documents(dataset, {"m": [0, 1]}, tmp_path / "documents", 10)
    assert shards.done(tmp_path / "documents") == set()


def test_some_shards_alone_are_written_as_all_of_them_were(tmp_path):
    path = saved(tmp_path, {"text": list("abcdefg"), "label": [1] * 7, "id": list("xyxzyww")})
    all_of_it = table_of(path, 2, id="id")
    folder = tmp_path / "documents"
    before = {name: (folder / name).stat().st_mtime_ns for name in shards.done(folder)}
    (folder / "00001.parquet").unlink()
    told = []
    dataset = Dataset(str(path), "text", "label", "id")
    written = write_documents(dataset, {"m": [0, 1]}, folder, 2, told.append,
                              only={"00001.parquet"}, expected=dataset.sha256())
    assert (written.n_rows, told) == (7, [2])
    with pytest.raises(ClsightError, match="changed since the run began"):
        write_documents(dataset, {"m": [0, 1]}, folder, 2, only=(), expected="another")
    assert pq.read_table(folder).equals(all_of_it)
    assert {name for name, at in before.items() if (folder / name).stat().st_mtime_ns != at
            } == {"00001.parquet"}


def test_what_was_left_of_documents_that_failed_is_not_taken(tmp_path):
    path = saved(tmp_path, {"text": ["a"], "label": [1]})
    old = tmp_path / "documents" / f"{shards.PARTIAL}documents"
    shards.write(pq.read_table(path), old / "00007.parquet")
    table_of(path)
    assert shards.done(tmp_path / "documents") == {"00000.parquet"}


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """A run of well-formed oddities, with label names, ids and columns that are as odd."""
    folder = tmp_path_factory.mktemp("odd")
    names, models = ['<b>"bad"</b>', "'; DROP TABLE x; --"], {}
    for name, path in demo_models().items():
        models[name] = str(shutil.copytree(path, folder / name))
        config = json.loads((folder / name / "config.json").read_text())
        config |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in
                                                                   enumerate(names)}}
        (folder / name / "config.json").write_text(json.dumps(config))
    n = len(WELL_FORMED)
    path = saved(folder, {
        "<text>": [*WELL_FORMED, "bad label", None, "bad id"],
        "label' OR 1=1": [*(names[i % 2] for i in range(n)), "<i>", names[0], names[0]],
        'the "id"': [f"<i>'{i}\";--" for i in range(n + 2)] + ["<i>'0\";--"],
    })
    return pipeline.run(str(path), text="<text>", label="label' OR 1=1", id='the "id"',
                        models=models, dtype="float32", output=folder / "run", shard_size=8,
                        on_bad_row="skip", options=pipeline.Options(min_documents=5)), names


def test_odd_texts_are_predicted_as_by_the_models_themselves(odd_run):
    run, names = odd_run
    for model, plan in run.plan.models.items():
        eager, stored = Eager(plan.path), run.sql(
            f"SELECT p.*, text FROM predictions AS p JOIN documents USING (document_id) "
            f"WHERE model = '{model}' ORDER BY p.\"row\"")
        assert stored["text"].to_list() == WELL_FORMED
        for row in stored.iter_rows(named=True):
            logits, *_ = eager(row["text"], plan.max_length)
            probability = np.exp(logits) / np.exp(logits).sum()
            assert row["predicted"] == names[logits.argmax()]
            assert row["confidence"] == pytest.approx(probability.max(), abs=1e-5)
            assert row["margin"] == pytest.approx(np.ptp(logits), abs=1e-4)


def test_words_of_odd_texts_hold_every_character_once(odd_run):
    words = odd_run[0].sql("SELECT * FROM words ORDER BY model, position")
    for i, text in enumerate(WELL_FORMED):
        for model in demo_models():
            own = words.filter(model=model, document_id=f"<i>'{i}\";--")
            held = np.zeros(len(text), dtype=int)
            for start, end in own.select("start_char", "end_char").rows():
                held[start:end] += 1
            # Python's isspace counts four separators of ASCII that are no white space in Unicode.
            assert held.tolist() == [not c.isspace() or "\x1c" <= c <= "\x1f" for c in text]
            for score in ("uniform", "classifier", "projected"):
                assert own[score].min() >= -1e-6
                assert own[score].sum() <= 1 + 1e-5


def test_documents_that_cannot_be_used_are_told_beside_the_others(odd_run):
    n = len(WELL_FORMED)
    assert odd_run[0].sql('SELECT "row", reason FROM bad_documents ORDER BY 1').rows() == [
        (n, "label '<i>' is not among bert's: '<b>\"bad\"</b>' and \"'; DROP TABLE x; --\""),
        (n + 1, "text is null"), (n + 2, "id '<i>\\'0\";--' is that of row 0 already")]


@pytest.mark.parametrize("text", ["[PAD] a bad film", "bad [PAD] film <pad> so", "<pad><pad>"])
def test_padding_that_is_typed_in_a_text_is_read_as_by_the_models_themselves(tmp_path, text):
    path = saved(tmp_path, {"text": ["a film", text], "label": [0, 1]})
    run = pipeline.run(str(path), text="text", label="label", models=demo_models(),
                       dtype="float32", output=tmp_path / "run")
    for model, plan in run.plan.models.items():
        logits, *_ = Eager(plan.path)(text, plan.max_length)
        stored = run.sql(f"FROM predictions WHERE model = '{model}' AND document_id = 1")
        assert stored["margin"][0] == pytest.approx(np.ptp(logits), abs=1e-4)
