"""Files of every format come back row by row; what is broken in them is a row with its reason."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsight import lines, readers
from clsight.dataset import Dataset
from clsight.errors import ClsightError, UsageError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)  # no lone surrogates
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5)


def generated(max_examples):
    """Hypothesis without chance or clock; files of one test lie over one another."""
    return settings(max_examples=max_examples, deadline=None, derandomize=True,
                    suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(tmp_path, name, content, **columns):
    """All rows of a file of these bytes: dicts of its columns, or the problem."""
    (tmp_path / name).write_bytes(content)
    dataset = Dataset(str(tmp_path / name), columns.pop("text", "text"), "label", **columns)
    found = []
    for rows in dataset.rows():
        values = {
            name: (column.cast(pa.binary()) if pa.types.is_string(column.type) else column)
            .to_pylist() for name, column in zip(rows.values.schema.names, rows.values, strict=True)
        }
        found += [problem or {name: column[i] for name, column in values.items()}
                  for i, problem in enumerate(rows.problem.to_pylist())]
    return found


def one_line(error):
    assert len(str(error).splitlines()) == 1


def csv_bytes(rows, delimiter=",", encoding="utf-8"):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue().encode(encoding)


@generated(300)
@given(ROWS, st.sampled_from([",", "\t"]), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_what_was_written_as_csv_comes_back(tmp_path, rows, delimiter, encoding):
    name = "d.csv" if delimiter == "," else "d.tsv"
    content = csv_bytes([("text", "label"), *rows], delimiter, encoding)
    assert rows_of(tmp_path, name, content) == [
        {"text": text.encode(), "label": label.encode() or None} for text, label in rows
    ]


@generated(300)
@given(ROWS, st.booleans(), st.sampled_from(["d.jsonl", "d.ndjson", "d.jsonl.gz"]))
def test_what_was_written_as_json_lines_comes_back(tmp_path, rows, ascii_only, name):
    content = "\n".join(json.dumps({"text": text, "label": label}, ensure_ascii=ascii_only)
                        for text, label in rows).encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    assert rows_of(tmp_path, name, content) == [
        {"text": text.encode(), "label": label.encode()} for text, label in rows
    ]


BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([
        b"text", b"label", b",", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b"{", b"}", b"[", b":",
        b'"text"', b'"label"', b"\\ud800", b"\xff", b"\xe2\x80", b"\0", b"1", b"NaN", b"1e999",
        b'{"text": "a", "label": 1}', b"\xef\xbb\xbf", "é😀".encode(),
    ]), max_size=20).map(b"".join),
)


@pytest.mark.parametrize(("name", "header"), [
    ("d.csv", b"text,label\n"), ("d.tsv", b"text\tlabel\n"), ("d.csv", b""), ("d.csv.gz", b""),
    ("d.jsonl", b'{"text": "a", "label": 1}\n'), ("d.jsonl", b""), ("d.jsonl.gz", b""),
    ("d.parquet", b"PAR1"), ("d.parquet.gz", b""),
])
@generated(100)
@given(content=BYTES)
def test_any_bytes_are_rows_with_reasons_on_one_line_or_one_sentence(
    tmp_path, name, header, content
):
    try:
        found = rows_of(tmp_path, name, header + content)
    except ClsightError as error:
        one_line(error)
        return
    assert all(len(row.splitlines()) == 1 for row in found if isinstance(row, str))
    if name == "d.jsonl":
        assert len(found) == sum(
            bool(line.decode("utf-8-sig", "replace").strip())
            for line in (header + content).split(b"\n")
        )


@generated(100)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_byte_of_a_parquet_file_that_is_not_as_it_was_is_no_crash(tmp_path, place, byte):
    path = tmp_path / "good.parquet"
    if not path.is_file():
        pq.write_table(pa.table({"text": ["a", "é", None], "label": [0, 1, 2]}), path,
                       compression="none")
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    try:
        found = rows_of(tmp_path, "d.parquet", bytes(content))
    except ClsightError as error:
        one_line(error)
    else:
        assert all(isinstance(row, dict) for row in found)


@pytest.mark.parametrize(("content", "expected"), [
    (b'a,0\n"b""c",1\n', ["a", 'b"c']),
    (b'"a\nb",0\nc,1\n', ["a\nb", "c"]),
    (b"a,0\n\n\r\nb,1", ["a", "b"]),
    (b"a,0\rb,1\r", ["a", "b"]),
    (b"a,0\nb,1,2\nc\nd,1\n",
     ["a", "has 3 fields, the header has 2 (line 3)", "has 1 field, the header has 2 (line 4)",
      "d"]),
    (b'a,0\n"b\nc,1,\n"d",1\ne,1\n',
     ["a", "lines 3 to 5: a quote is not closed or something follows it", "e"]),
    (b'"a"b,0\nc,1\n', ["line 2: a quote is not closed or something follows it", "c"]),
    (b'a,0\nb,1\n"c,0\nd,1\n',
     ["a", "b", "lines 4 to 5: a quote is not closed or something follows it"]),
    (b'a,0\n"b\nc",1,2\n', ["a", "has 3 fields, the header has 2 (lines 3 to 4)"]),
    (b"NA,0\nnull,1\n,1\n", ["NA", "null", ""]),
    (b"a\0b,0\n", ["a\0b"]),
])
def test_rows_of_csv(tmp_path, content, expected):
    found = rows_of(tmp_path, "d.csv", b"text,label\n" + content)
    assert [row if isinstance(row, str) else row["text"].decode() for row in found] == expected


def test_a_quote_that_is_never_closed_takes_no_more_than_the_longest_field(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 20)
    found = rows_of(tmp_path, "d.csv", b'text,label\n"a,0\nb,1\nc,0\nd,1\ne,0\nf,1\ng,0\n')
    assert found == ["lines 2 to 7: a field has more than 20 characters, as where a quote is not "
                     "closed", {"text": b"g", "label": b"0"}]


@pytest.mark.parametrize(("line", "problem"), [
    (b"{broken", "line 2: broken JSON at column 2 (Expecting property name enclosed in double "
                 "quotes)"),
    (b'{"text": "a"} {"text": "b"}', "line 2: broken JSON at column 15 (Extra data)"),
    (b'{"text": "a\tb"}', "line 2: broken JSON at column 12 (Invalid control character at)"),
    (b"[1, 2]", "line 2: a list instead of an object"),
    (b"3", "line 2: a number instead of an object"),
    (b"null", "line 2: null instead of an object"),
    (b'"a"', "line 2: text instead of an object"),
    (b'{"text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "line 2: JSON that is nested too deep"),
    (b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "line 2: a number has too many digits"),
    (b'{"text": 5, "label": 1}', "line 2: 'text' is a number, not text"),
    (b'{"text": true, "label": 1}', "line 2: 'text' is true or false, not text"),
    (b'{"text": ["a"], "label": 1}', "line 2: 'text' is a list"),
    (b'{"text": "a", "label": {"b": 1}}', "line 2: 'label' is an object"),
    (b'{"text": "a", "text": "b"}', "line 2: an object has a name twice"),
])
def test_lines_that_are_no_documents(tmp_path, line, problem):
    good = b'{"text": "a", "label": 0}'
    found = rows_of(tmp_path, "d.jsonl", b"\n".join([good, line, b"  ", good]))
    assert found == [{"text": b"a", "label": 0}, problem, {"text": b"a", "label": 0}]


@pytest.mark.parametrize(("labels", "expected"), [
    ([1, None], [1, None]), ([1.0, 0.5], [1.0, 0.5]), ([True, False], [True, False]),
    (["a", 1, True, None, 1.5], [b"a", b"1", b"true", None, b"1.5"]),
    ([2**70, 1], [str(2**70).encode(), b"1"]), ([float("nan"), 1.0], [None, 1.0]),
])
def test_values_of_json_keep_their_type_where_all_have_it(tmp_path, labels, expected):
    content = "\n".join(json.dumps({"text": "a", "label": label}) for label in labels)
    assert [row["label"] for row in rows_of(tmp_path, "d.jsonl", content.encode())] == expected


@pytest.mark.parametrize(("name", "bytes_of"), [
    ("d.csv", lambda text: csv_bytes([("text", "label"), *((text, 1) for _ in range(10))])),
    ("d.jsonl", lambda text: b"\n".join([json.dumps({"text": text, "label": 1}).encode()] * 10)),
    ("d.parquet", lambda text: parquet_bytes({"text": [text + str(i) for i in range(10)],
                                              "label": [1] * 10})),
])
def test_batches_of_long_texts_are_short(tmp_path, monkeypatch, name, bytes_of):
    monkeypatch.setattr(readers, "BYTES", 4_000_000)
    (tmp_path / name).write_bytes(bytes_of("long " * 200_000))
    sizes = [len(rows) for rows in Dataset(str(tmp_path / name), "text", "label").rows()]
    assert sum(sizes) == 10
    assert max(sizes) <= 4


def parquet_bytes(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def test_columns_are_found_by_their_whole_name(tmp_path):
    content = parquet_bytes({"text.a": ["no"], "text": ["yes"], "label": [1]})
    assert rows_of(tmp_path, "d.parquet", content) == [{"text": b"yes", "label": 1}]
    content = parquet_bytes({"a.b": ["yes"], "label": [1]})
    assert rows_of(tmp_path, "d.parquet", content, text="a.b") == [{"a.b": b"yes", "label": 1}]


@pytest.mark.parametrize(("name", "content"), [
    ("d.csv", b"text,label,text\na,1,b\n"),
    ("d.tsv", b"text\tlabel\ttext\na\t1\tb\n"),
    ("d.parquet", parquet_bytes(pa.table([["a"], [1], ["b"]], ["text", "label", "text"]))),
])
def test_a_column_that_is_there_twice_is_a_wrong_call(tmp_path, name, content):
    with pytest.raises(UsageError, match=r"has the column 'text' more than once; give each"):
        rows_of(tmp_path, name, content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.csv.gz"])
def test_other_encodings_are_named(tmp_path, name, encoding):
    content = '{"text": "a", "label": 1}\n'.encode(encoding)
    content = gzip.compress(content) if name.endswith(".gz") else content
    with pytest.raises(ClsightError, match=r"no UTF-8 but looks like UTF-16 or UTF-32; save it as"):
        rows_of(tmp_path, name, content)


def test_a_mark_of_utf_8_is_no_part_of_the_first_name(tmp_path):
    found = rows_of(tmp_path, "d.csv", b'\xef\xbb\xbftext,label\na,1\n')
    assert found == [{"text": b"a", "label": b"1"}]
    found = rows_of(tmp_path, "d.jsonl", b'\xef\xbb\xbf{"text": "a", "label": 1}\n')
    assert found == [{"text": b"a", "label": 1}]


MANY = csv_bytes([("text", "label"), *((f"text {i} {i * i % 997}", i % 2) for i in range(9000))])


@pytest.mark.parametrize(("name", "content", "behind"), [
    ("d.csv.gz", gzip.compress(MANY)[:-5000], r"row [\d,]+: Compressed file ended before"),
    ("d.csv.gz", gzip.compress(MANY)[:15000] + b"\x11" * 20_000, r"row [\d,]+: "),
    ("d.csv.gz", gzip.compress(MANY)[:-8] + b"12345678", r"row 8,999: CRC check failed"),
    ("d.csv.gz", MANY, r"Not a gzipped file"),
    ("d.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n' * 9000)[:-20], r"row [\d,]+: "),
])
def test_packed_files_are_read_until_they_break(tmp_path, name, content, behind):
    (tmp_path / name).write_bytes(content)
    sizes = []
    with pytest.raises(ClsightError, match=rf"{name} cannot be read( behind)?:? {behind}") as told:
        sizes.extend(len(rows) for rows in Dataset(str(tmp_path / name), "text", "label").rows())
    assert f"behind row {sum(sizes) - 1:,}:" in str(told.value) or not sizes
    one_line(told.value)


def test_a_damaged_parquet_file_is_read_until_it_breaks(tmp_path):
    columns = {"text": [f"text {i}" for i in range(20_000)], "label": [1] * 20_000}
    content = bytearray(parquet_bytes(columns, row_group_size=5000, write_page_checksum=True))
    content[len(content) // 2] ^= 1
    (tmp_path / "d.parquet").write_bytes(content)
    sizes, dataset = [], Dataset(str(tmp_path / "d.parquet"), "text", "label")
    with pytest.raises(ClsightError, match=r"cannot be read behind row [\d,]+: .*CRC") as told:
        sizes.extend(len(rows) for rows in dataset.rows())
    assert 5000 <= sum(sizes) <= 10_000
    assert f"behind row {sum(sizes) - 1:,}:" in str(told.value)


@pytest.mark.parametrize("kept", [4, 100, 2000, -4])
def test_a_parquet_file_that_is_cut_off_is_named(tmp_path, kept):
    content = parquet_bytes({"text": [f"text {i}" for i in range(1000)], "label": [1] * 1000})
    with pytest.raises(ClsightError, match=r"d\.parquet cannot be read: ") as told:
        rows_of(tmp_path, "d.parquet", content[:kept])
    one_line(told.value)


def test_what_cannot_be_read_ends_the_batches(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"text,label\na,0\nb,1,2\n")
    dataset = Dataset(str(tmp_path / "d.csv"), "text", "label")
    with pytest.raises(ClsightError, match=r"row 1: has 3 fields, the header has 2 \(line 3\)"):
        list(dataset.batches())


def test_a_file_of_nothing_but_broken_lines_is_named(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b"no\njson\n")
    with pytest.raises(ClsightError, match=r"none of its 2 rows can be read; row 0: line 1: bro"):
        _ = Dataset(str(tmp_path / "d.jsonl"), "text", "label").schema


@pytest.mark.parametrize(("name", "first", "good"), [
    ("d.jsonl", b"no json\n", b'{"text": "a", "label": 1}\n'), ("d.csv", b"text,label\n", b"a,1\n"),
])
def test_a_file_may_begin_with_broken_lines(tmp_path, name, first, good):
    path = tmp_path / name
    path.write_bytes(first + b"broken,line,1\n" * 5000 + good)
    dataset = Dataset(str(path), "text", "label")
    assert dataset.labels() == [1]
    assert sum(rows.problem.null_count for rows in dataset.rows()) == 1


@pytest.mark.parametrize(("name", "content"), [
    ("d.csv", b""), ("d.csv", b"text,label\n"), ("d.tsv", b"\n\n"), ("d.jsonl", b""),
    ("d.jsonl", b" \n\n"), ("d.jsonl.gz", gzip.compress(b"")), ("d.csv.gz", b""),
])
def test_files_without_rows_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClsightError, match=rf"{name} has no rows"):
        _ = Dataset(str(tmp_path / name), "text", "label").schema


def test_a_header_that_is_broken_is_named(tmp_path):
    with pytest.raises(ClsightError, match=r"line 1: a quote is not closed.*has to name the colu"):
        rows_of(tmp_path, "d.csv", b'"text"x,label\na,1\n')
