"""A relation of a run for other tools: in files, or in tables that several runs share.

    rows         an answer in plain types; what targets have in common
    files        Parquet, CSV, JSON Lines, Arrow, DuckDB: whole or not at all
    delta        a Delta Lake table
    postgresql   a PostgreSQL table, for Grafana, Superset or Metabase

All are streamed, so that memory does not grow with the rows.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from clsight import database
from clsight import plan as plans
from clsight.errors import ClsightError, UsageError
from clsight.export import delta, files, postgresql
from clsight.export.rows import Rows

DELTA = "delta:"
"""How a target begins that is the folder of a Delta Lake table."""
ROWS_PER_BATCH = 100_000
ID_LENGTH = 12
"""Hexadecimal digits of the fingerprint that name a run in shared tables."""


@dataclass(frozen=True)
class Exported:
    """What was written, and where."""

    n_rows: int
    where: str
    notices: tuple[str, ...] = ()
    """What is not in the target as it was in the run, in sentences."""


def export(
    run: Path,
    relation: str,
    target: str,
    given: dict[str, str] | None = None,
    table: str | None = None,
    run_id: str | None = None,
) -> Exported:
    """Write a relation, a named query or the answer of a SELECT statement to a target.

    Args:
        run: the run folder.
        relation: what is asked, as in `database.query`.
        target: a file (.parquet, .csv, .jsonl, .ndjson, .arrow), replaced whole; a DuckDB file
            (.duckdb, .db), of which one table is replaced; `delta:FOLDER` or a PostgreSQL address,
            whose table gets a first column run_id, and of which this run's rows are replaced.
        given: parameters of the query.
        table: name of the table in a database, by default that of the relation.
        run_id: name of the run in tables that runs share, by default the beginning of its
            fingerprint.

    Raises:
        UsageError: the call cannot be right, or a shared table has other columns.
        ClsightError: the target cannot be written; what was there is there still.
    """
    kind = _kind(target)
    _refuse_unused(kind, table, run_id)
    if kind != "postgresql":
        _refuse_inside(run, target.removeprefix(DELTA))
    table = table or (_name_of(relation) if kind in ("database", "postgresql") else "")
    if kind in ("delta", "postgresql"):
        run_id = run_id or plans.load(run).fingerprint[:ID_LENGTH]
    with database.connect(run) as connection:
        comments = _comments(connection, relation)
        answer = database.query(connection, relation, given or {}, ROWS_PER_BATCH)
        try:
            return _written(kind, Rows(answer, comments, run_id), target, table)
        finally:
            _end(connection, answer)


def _kind(target: str) -> str:
    if postgresql.is_address(target):
        return "postgresql"
    if target.startswith(DELTA) and target != DELTA:
        return "delta"
    suffix = Path(target).suffix
    if suffix in files.DATABASES or suffix in files.FORMATS:
        return "database" if suffix in files.DATABASES else "file"
    raise UsageError(f"{target}: no target; write a file that ends in "
                     f"{', '.join([*files.FORMATS, *files.DATABASES])}, delta:FOLDER, or "
                     "postgresql://USER@HOST/DATABASE")


def _refuse_unused(kind: str, table: str | None, run_id: str | None) -> None:
    if table is not None and kind not in ("database", "postgresql"):
        raise UsageError("--table is for DuckDB files and PostgreSQL; others hold one table")
    if run_id is not None and kind not in ("delta", "postgresql"):
        raise UsageError("--run-id is for PostgreSQL and Delta Lake; files hold one run")
    if "" in (table, run_id):
        raise UsageError("--table and --run-id cannot be empty")


def _refuse_inside(run: Path, place: str) -> None:
    if Path(place).resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{place} lies in the run, which holds its own files alone; write it "
                         "elsewhere")


def _name_of(relation: str) -> str:
    if not re.fullmatch(r"\w+", relation):
        raise UsageError("the answer of a SELECT statement has no name: give one with --table")
    return relation


def _comments(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    try:
        return dict(connection.sql(
            'SELECT "column", what FROM columns WHERE relation = $relation AND what IS NOT NULL',
            params={"relation": relation}).fetchall())
    except duckdb.CatalogException:  # a run that was made before its columns were described
        return {}


def _end(connection: duckdb.DuckDBPyConnection, answer: pa.RecordBatchReader) -> None:
    """Leave nothing of an answer unread: the next connection to the file would wait for it."""
    connection.interrupt()
    with suppress(ClsightError):
        for _ in answer:
            pass


def _written(kind: str, rows: Rows, target: str, table: str) -> Exported:
    if kind == "file":
        files.write(rows, Path(target))
        return Exported(rows.n_rows, target)
    if kind == "database":
        files.write_table(rows, Path(target), table)
        return Exported(rows.n_rows, f"table {table} of {target}")
    if kind == "delta":
        folder = target.removeprefix(DELTA)
        delta.write(rows, folder)
        return Exported(rows.n_rows, f"the Delta table {folder}, run {rows.run_id}")
    changed = postgresql.write(rows, target, table)
    notices = tuple(f"{column}: {n:,} texts hold U+0000, which PostgreSQL cannot store; "
                    f"{postgresql.SHOWN_NUL} stands for it" for column, n in changed.items())
    return Exported(rows.n_rows, f"table {table} of {postgresql.shown(target)}, run {rows.run_id}",
                    notices)
