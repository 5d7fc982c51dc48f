"""CSV and JSON Lines -> records, line by line; a broken one says why, and reading goes on."""

import codecs
import csv
import gzip
import io
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, AnyStr

from clsight.errors import ClsightError

LONGEST = 1 << 26
"""Most characters of a line or a field: what follows a quote that is not closed goes no further."""
FIRST = 4096
"""Objects of JSON Lines whose names are the columns."""

Values = Sequence[Any] | None
"""Those of the wanted columns, or none where there is a problem."""
Record = tuple[Values, str | None]
"""Values of a row, and the problem."""


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """A file of texts, unpacked where it is packed.

    Raises:
        ClsightError: it is no UTF-8.
    """
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        head = file.peek(4)[:4]
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
            raise ClsightError(f"{path} cannot be read: it is no UTF-8 but looks like UTF-16 or "
                               "UTF-32; save it as UTF-8")
        yield file


def _lines(file: IO[AnyStr]) -> Iterator[AnyStr]:
    n = 0
    while line := file.readline(LONGEST + 1):
        n += 1
        if len(line) > LONGEST:
            raise OSError(f"line {n:,} is longer than {LONGEST:,} characters")
        yield line


def delimited(file: IO[bytes], delimiter: str) -> Any:
    """Python's reader of CSV; bytes that are not UTF-8 come as lone surrogates."""
    csv.field_size_limit(LONGEST)
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    return csv.reader(_lines(text), delimiter=delimiter, strict=True)


def header(path: str, reader: Any) -> list[str]:
    """Names of the columns.

    Raises:
        ClsightError: the first line cannot be read.
    """
    try:
        return next(filter(None, reader), [])
    except csv.Error as error:
        raise ClsightError(f"{path} cannot be read: {_spoilt(1, reader.line_num, error)}; the "
                           "first line has to name the columns") from error


def fields(
    reader: Any, names: Sequence[str], wanted: Sequence[str], texts: Collection[str]
) -> Iterator[Record]:
    """Records of CSV: an empty field is an empty text, and missing in other columns."""
    places = [(names.index(name) if name in names else None, name in texts) for name in wanted]
    while True:
        first = reader.line_num + 1
        try:
            found = next(reader, None)
        except csv.Error as error:
            yield None, _spoilt(first, reader.line_num, error)
            continue
        if found is None:
            return
        if len(found) == len(names):
            yield [None if place is None else found[place] if is_text else found[place] or None
                   for place, is_text in places], None
        elif found:  # a blank line is no row
            yield None, (f"has {len(found):,} field{'s'[: len(found) != 1]}, the header has "
                         f"{len(names):,} ({_named_lines(first, reader.line_num)})")


def _spoilt(first: int, last: int, error: csv.Error) -> str:
    why = "a quote is not closed or something follows it"
    if "limit" in str(error):
        why = f"a field has more than {LONGEST:,} characters, as where a quote is not closed"
    return f"{_named_lines(first, last)}: {why}"


def _named_lines(first: int, last: int) -> str:
    return f"lines {first:,} to {last:,}" if last > first else f"line {last:,}"


def objects(
    file: IO[bytes], names: dict[str, None], wanted: Sequence[str], texts: Collection[str]
) -> Iterator[Record]:
    """Records of JSON Lines; `names` gets the names in the first rows. NaN counts as null."""
    n_read = 0
    for n, line in enumerate(_lines(file), 1):
        text = line.decode("utf-8-sig" if n == 1 else "utf-8", "surrogateescape")
        if not text.strip():
            continue
        record, problem = _parsed(text)
        values = [None if value != value else value for value in map(record.get, wanted)]
        problem = problem or _unfit(values, wanted, texts)
        if record and (n_read := n_read + 1) <= FIRST:
            names.update(dict.fromkeys(record))
        yield (None, f"line {n:,}: {problem}") if problem else (values, None)


def _parsed(line: str) -> tuple[dict[str, Any], str | None]:
    """A line's object, and what is wrong with it."""
    try:
        record = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        return {}, f"broken JSON at column {error.pos + 1:,} ({error.msg})"
    except RecursionError:
        return {}, "JSON that is nested too deep"
    except ValueError as error:
        return {}, "a number has too many digits" if "limit" in str(error) else str(error)
    if isinstance(record, dict):
        return record, None
    return {}, f"{_KINDS[type(record)]} instead of an object"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which JSON does not say what it is where a name comes again."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


_KINDS = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number",
          bool: "true or false", type(None): "null"}


def _unfit(values: Sequence[Any], wanted: Sequence[str], texts: Collection[str]) -> str | None:
    """Why values cannot be those of their columns."""
    for name, value in zip(wanted, values, strict=True):
        if isinstance(value, dict | list):
            return f"{name!r} is {_KINDS[type(value)]}"
        if name in texts and not isinstance(value, str | None):
            return f"{name!r} is {_KINDS[type(value)]}, not text"
    return None
