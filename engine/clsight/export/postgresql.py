"""A PostgreSQL table, through ADBC: the rows of a run replaced in one transaction."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

import pyarrow as pa
import pyarrow.compute as pc

from clsight.errors import ClsightError, UsageError, listed
from clsight.export.rows import RUN_ID, Rows, comments_on, extra, quoted_name, refuse_other_columns

NUL, SHOWN_NUL = "\0", "\N{SYMBOL FOR NULL}"
"""What PostgreSQL's text cannot hold, and what stands for it: one character too, so that positions
of words stay right."""
LONGEST_NAME = 63
"""Bytes; PostgreSQL cuts off the rest without a word."""
_CHARACTER = r"(?:[^%:@/?#]|%[0-9A-Fa-f]{2})"
_HOST = r"(?:\[[0-9A-Fa-f:.]*\]|[^:@/?#,\[\]]*)(?::\d*)?"
_ADDRESS = re.compile(
    rf"(?P<scheme>postgres(?:ql)?)://(?:(?P<user>{_CHARACTER}*)(?::(?P<password>{_CHARACTER}*))?@)?"
    rf"(?P<place>{_HOST}(?:,{_HOST})*(?:/[^@?#]*)?)(?:\?(?P<options>[^@#]*))?")
_SHAPE = "clsight_shape"
_COLUMNS = """
SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def is_address(target: str) -> bool:
    """True where a target is meant to be a PostgreSQL address."""
    return target.startswith(("postgresql:", "postgres:"))


def shown(address: str) -> str:
    """An address without password and options.

    Raises:
        UsageError: it cannot be told where in it the password is; the sentence does not repeat it.
    """
    parts = _ADDRESS.fullmatch(address)
    if not parts:
        raise UsageError("the PostgreSQL address cannot be read: write postgresql://USER@HOST:PORT/"
                         "DATABASE, with @ : / ? # and % in names and passwords as %40 %3A %2F %3F "
                         "%23 and %25 (or the password in PGPASSWORD or ~/.pgpass)")
    return f"{parts['scheme']}://{parts['user'] + '@' if parts['user'] else ''}{parts['place']}"


def write(rows: Rows, address: str, table: str) -> dict[str, int]:
    """Put rows into a table, which is made where it is missing, in place of those of their run id.

    Others can read the earlier rows until all new ones are there.

    Returns:
        Column -> how many of its texts had a U+0000, which is `SHOWN_NUL` in the table.

    Raises:
        UsageError: the table has other columns, or a name is too long.
        ClsightError: PostgreSQL refuses; what was in the table is still there.
    """
    _refuse_long_names([table, *rows.schema.names])
    driver = extra("adbc_driver_postgresql.dbapi")
    where, changed = f"table {table} of {shown(address)}", dict[str, int]()
    try:
        with (rows.failures_named(where, driver.Error), driver.connect(address) as connection,
              connection.cursor() as cursor):
            # Two exports of one run would both find nothing to delete: one waits for the other, and
            # then sees what that one wrote, whatever isolation is usual on the server.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            schema = _schema(cursor)
            name = f"{quoted_name(schema)}.{quoted_name(table)}"
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", (name,))
            _make_table(cursor, name, rows, where)
            cursor.execute(f"DELETE FROM {name} WHERE {RUN_ID} = $1", (rows.run_id,))
            cursor.adbc_ingest(table, _storable(rows, changed), "append", db_schema_name=schema)
            connection.commit()
    except ClsightError as error:
        raise type(error)(_without_secrets(str(error), address)) from None
    return changed


def _schema(cursor: Any) -> str:
    cursor.execute("SELECT current_schema()")
    (schema,) = cursor.fetchone()
    if schema is None:
        raise UsageError("no schema of the search path is there: add ?options=-csearch_path%3DNAME "
                         "to the address")
    return str(schema)


def _make_table(cursor: Any, name: str, rows: Rows, where: str) -> None:
    """Make the table where it is missing; refuse another one."""
    # The driver knows best what it makes of Arrow's types.
    cursor.adbc_ingest(_SHAPE, rows.schema.empty_table(), mode="create", temporary=True)
    ours, there = _columns(cursor, f"pg_temp.{_SHAPE}"), _columns(cursor, name)
    if there:
        refuse_other_columns(where, there, ours)
    else:
        cursor.execute(f"CREATE TABLE {name} (LIKE pg_temp.{_SHAPE})")
        cursor.execute(f"CREATE INDEX ON {name} ({RUN_ID})")
        for statement in comments_on(name, rows.schema):
            cursor.execute(statement)
    cursor.execute(f"DROP TABLE pg_temp.{_SHAPE}")  # a pool may keep the session


def _columns(cursor: Any, table: str) -> list[str]:
    cursor.execute(_COLUMNS, (table,))
    return [column for (column,) in cursor.fetchall()]


def _storable(rows: Rows, changed: dict[str, int]) -> pa.RecordBatchReader:
    """The rows without U+0000 in texts; counts into `changed`, by column."""
    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.reader():
            columns = []
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                stored, n = _without_nul(column)
                columns.append(stored)
                if n:
                    changed[name] = changed.get(name, 0) + n
            yield pa.record_batch(columns, batch.schema)

    return pa.RecordBatchReader.from_batches(rows.schema, batches())


def _without_nul(column: pa.Array) -> tuple[pa.Array, int]:
    """A column of texts, or of lists of them, and how many texts were changed."""
    if pa.types.is_list(column.type):
        texts, n = _without_nul(column.flatten())
        if n:
            lengths = pc.fill_null(pc.list_value_length(column), 0)
            offsets = pa.concat_arrays([pa.array([0], pa.int32()),
                                        pc.cumulative_sum(lengths).cast(pa.int32())])
            column = pa.ListArray.from_arrays(offsets, texts, mask=column.is_null())
        return column, n
    if not pa.types.is_string(column.type):
        return column, 0
    n = pc.sum(pc.match_substring(column, NUL)).as_py() or 0
    return (pc.replace_substring(column, NUL, SHOWN_NUL) if n else column), n


def _refuse_long_names(names: list[str]) -> None:
    if long := [name for name in names if len(name.encode()) > LONGEST_NAME]:
        raise UsageError(f"{listed(long)}: PostgreSQL has names of {LONGEST_NAME} bytes at most; "
                         "give shorter ones")


def _without_secrets(text: str, address: str) -> str:
    parts = _ADDRESS.fullmatch(address)
    assert parts  # `shown` has read it
    given = parse_qs(parts["options"] or "")
    secrets = [parts["password"] or "", *given.get("password", ()), *given.get("sslpassword", ())]
    for secret in filter(None, secrets):
        for spelled in (secret, unquote(secret)):
            text = text.replace(spelled, "***")
    return text
