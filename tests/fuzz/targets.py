"""What is fuzzed: each target takes bytes, and raises where something that holds for any does not.

`benchmarks/fuzz.py` looks for such bytes; `test_corpus.py` gives them what it has found before.
"""

import io
import json
import os
import tempfile
import threading
import unicodedata
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clsight import database, documents, tables
from clsight.dataset import Dataset
from clsight.errors import ClsightError
from clsight.words import segment

SECONDS = 2
"""After which a question is broken off, as a person would."""
LABELS = {"m": [0, 1], "n": ["neg", "pos"]}


def readers(name):
    """A target: the bytes are a dataset of this name."""
    def read(data):
        path = _folder() / name
        path.write_bytes(data)
        for columns in ({}, {"id": "id", "text_pair": "pair", "group_by": "group"}):
            try:
                _documents(Dataset(str(path), "text", "label", **columns))
            except ClsightError as error:
                _one_line(str(error))
    return read


def _documents(dataset):
    """All that a run makes of a dataset: its rows in order, valid, each usable or with a reason."""
    schema = tables.documents(dataset.id_type, dataset.label_type)
    known = {model: labels for model, labels in LABELS.items()
             if pa.types.is_int64(dataset.label_type) == isinstance(labels[0], int)}
    row = 0
    assert all(label is not None for label in dataset.labels())
    for rows in dataset.rows():
        table = documents.table(rows, dataset, known, row).cast(schema)
        table.validate(full=True)
        assert table["row"].to_pylist() == list(range(row, row + len(rows)))
        row += len(rows)
        for one in table.to_pylist():
            _document(one, known)


def _document(one, known):
    if one["reason"] is not None:
        _one_line(one["reason"])
        return
    assert one["text"].strip()
    assert one["document_id"] is not None
    assert all(one["label"] in labels for labels in known.values())
    assert one["form"]


def words(data):
    """Words of a text hold each character that is not white space once, in order, and folded."""
    text = data.decode("utf-8", "replace")
    found = segment(pa.array([text]))
    forms, start, end = (list_[0].as_py() for list_ in (found.form, found.start, found.end))
    held = [place for s, e in zip(start, end, strict=True) for place in range(s, e)]
    # Python's isspace counts four separators of ASCII that are no white space in Unicode.
    assert held == [i for i, c in enumerate(text) if not c.isspace() or "\x1c" <= c <= "\x1f"]
    assert all(s < e for s, e in zip(start, end, strict=True))
    for form, s, e in zip(forms, start, end, strict=True):
        assert form == unicodedata.normalize("NFC", text[s:e].casefold())


class Question:
    """A target: bytes that are a question to a run, and after each NUL a parameter of it."""

    def __init__(self, run):
        """Ask the run in this folder; the present folder becomes an empty one."""
        self.run = Path(run).resolve()
        os.chdir(_folder())
        self.connection, self.before = database.connect(self.run), self._files()

    def __call__(self, data):
        """Ask; nothing but one kind of error may come of it, and no file."""
        question, *parameters = data.decode("utf-8", "surrogateescape").split("\0")
        given = dict(pair.partition("=")[::2] for pair in parameters)
        limit = threading.Timer(SECONDS, self.connection.interrupt)
        limit.start()
        try:
            for batch in database.query(self.connection, question, given):
                batch.validate()
        except ClsightError as error:
            if "INTERNAL" in str(error) or "FATAL" in str(error):
                # DuckDB answers nothing more after an error of its own.
                self.connection.close()
                self.connection = database.connect(self.run)
        finally:
            limit.cancel()
        assert self._files() == self.before

    def _files(self):
        return {(str(path), path.stat().st_size, path.stat().st_mtime_ns)
                for folder in (self.run, Path.cwd()) for path in folder.rglob("*")}


@cache
def _folder():
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _one_line(text):
    assert text
    assert len(text.splitlines()) == 1


READERS = {name: readers(f"d.{name}") for name in ("csv", "tsv", "jsonl", "parquet")}
TARGETS = READERS | {"words": words}
"""Name -> target; `query` needs a run."""


def _parquet(columns, **options):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def seeds():
    """Name of a target -> bytes from which fuzzing begins."""
    texts = ["good, \"bad\"", "é😀\u0301 [SEP]\n", None, " ", "x\0y"]
    rows = [{"id": f"i{i // 2}", "text": text, "pair": "p", "label": i % 3 / 1, "group": "g"}
            for i, text in enumerate(texts)]
    table = pa.Table.from_pylist(rows)
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    header = b"id,text,pair,label,group\n"
    csvs = [header + b'1,a,b,0,g\n2,"b, ""c""\nd",p,1.0,\n,,,,\n', header + b'x,y\n"z"z,0\n',
            b"\xef\xbb\xbftext,label\r\n\xff\xfe,neg\r\nNA,pos\r\n", b'text,label\n"a\0,1\n']
    kinds = {"id": pa.array([2**64 - 1, 1], pa.uint64()), "label": [True, False],
             "text": pa.array(["a", "b"]).dictionary_encode(), "group": [1.5, None],
             "pair": [b"a", b"b"]}
    return {
        "csv": csvs, "tsv": [data.replace(b",", b"\t") for data in csvs],
        "jsonl": [lines, b'{"text": "\\ud800", "label": NaN}\n{"text": 1, "text": 2}\n[[[[',
                  lines.replace(b"1.0", b'"neg"').replace(b'"g"', b"[1e999, 123456789012345678]")],
        "parquet": [_parquet(table, compression="none"), _parquet(table.to_pydict()),
                    _parquet(kinds, compression="none", use_dictionary=False),
                    _parquet(kinds, compression="gzip", data_page_version="2.0")],
        "words": ["It's 3.5 -- \u200d\U0001f468\u200d\U0001f469 e\u0301 ''x'' İß".encode(),
                  "日本語 हिन्दी\u00a0\x1c1,000.50...".encode()],
        "query": [*(name.encode() for name in database.sql_files("views")),
                  *(name.encode() + b"\0form=the\0model=bert\0score=uniform"
                    for name in database.sql_files("queries")),
                  b"SELECT form, count(*) FROM words WHERE model = $m GROUP BY ALL LIMIT 3\0m=bert",
                  b"WITH a AS (FROM documents) SELECT * FROM a WHERE text LIKE $t\0t=%'--",
                  b"SELECT 1; DROP TABLE documents", b"COPY documents TO 'x.csv'",
                  b"SELECT * FROM read_text('*')", b"EXPLAIN ANALYZE FROM words", b"SELECT '",
                  b"SELECT CAST(text AS INT) FROM documents", b"ATTACH 'x.db'",
                  b"VACUUM; SELECT 1"],
    }


TOKENS = {
    "csv": ["id", "text", "label", "pair", "group", ",", '"', '""', "\r\n", "\n", "true", "1e400"],
    "tsv": ["id", "text", "label", "pair", "group", "\t", '"', '""', "\r\n", "\n"],
    "jsonl": ['"id":', '"text":', '"label":', '"pair":', '"group":', "NaN", "Infinity", "\\ud800",
              "null", "true", "[", "]", "{", "}", "\n", "1e999", "99999999999999999999"],
    "query": ["SELECT ", "FROM ", "WHERE ", "documents", "words", "predictions", "$a", "\0a=", "(",
              ")", "*", "COPY ", " TO 'x'", "EXPLAIN ", "ANALYZE ", "PRAGMA ", "SET ", "INSTALL ",
              "ATTACH ", "CREATE TABLE ", "EXPORT DATABASE 'x'", ";", "'", '"', "--", "/*", "::",
              "read_csv(", "write_log(", "query(", "range(", "unnest(", "[", "{", "CAST(", "UNION ",
              "JOIN ", "USING (", "GROUP BY ALL", "list_", "struct_", "regexp_"],
}
"""Name of a target -> what fuzzing puts in."""
