"""A run in DuckDB: its relations, and named queries."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import duckdb
import pyarrow as pa

from clsight import plan as plans
from clsight.errors import ClsightError, UsageError

FILE = "clsight.duckdb"
_PARAMETER = re.compile(r"^-- Parameter: *(\w+)(?: *= *(\S+))? *(.*)$", re.MULTILINE)
_WHAT = re.compile(r"^-- What: *(.*(?:\n--  +.*)*)", re.MULTILINE)


def sql_folder() -> Path:
    """Where the SQL files are: in the installed package, else in the checkout."""
    inside = Path(__file__).parent / "sql"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "sql"


def sql_files(kind: str) -> dict[str, str]:
    """Name -> text of the files in `sql/KIND`: views, queries or checks."""
    return {path.stem: path.read_text() for path in sorted((sql_folder() / kind).glob("*.sql"))}


def purpose(sql: str) -> str:
    """The first sentence of a file's header: what the relation or query is."""
    match = _WHAT.search(sql)
    text = re.sub(r"\n--\s*", " ", match[1]) if match else ""
    return text.split(". ")[0].split("; ")[0].strip(" .;")


def parameters(sql: str) -> dict[str, str | None]:
    """Parameters that a query's header declares, with their defaults (None: must be given)."""
    return {name: default or None for name, default, _ in _PARAMETER.findall(sql)}


def connect(run: Path) -> duckdb.DuckDBPyConnection:
    """Open the database of a run, read-only; the run folder may have been moved.

    Raises:
        UsageError: the run is not complete yet.
    """
    plans.load(run)
    if not (run / FILE).is_file():
        raise UsageError(f"{run} has no {FILE} yet: let clsight run finish first")
    connection = duckdb.connect(run / FILE, read_only=True)
    return at(connection, run)


def catalogue() -> pa.RecordBatchReader:
    """What can be asked by name: one row per relation, query and check, with its purpose."""
    rows = [
        {"name": name, "kind": kind, "purpose": purpose(sql),
         "parameters": [key if default is None else f"{key}={default}"
                        for key, default in parameters(sql).items()]}
        for kind, files in (("relation", sql_files("views")), ("query", sql_files("queries")),
                            ("check", sql_files("checks")))
        for name, sql in files.items()
    ]
    return pa.Table.from_pylist(rows).to_reader()


def query(
    connection: duckdb.DuckDBPyConnection, name_or_sql: str, given: dict[str, str]
) -> pa.RecordBatchReader:
    """Run a named query, a relation by name, or one SELECT statement.

    Raises:
        UsageError: the statement is not a SELECT, or parameters are missing or unknown.
        ClsightError: DuckDB cannot run it.
    """
    named = sql_files("queries") | sql_files("checks")
    if name_or_sql in named:
        sql = named[name_or_sql]
    elif name_or_sql in sql_files("views"):
        sql = f'FROM "{name_or_sql}"'
    elif re.fullmatch(r"\w+", name_or_sql):
        raise UsageError(f"there is no query, relation or check {name_or_sql!r}; "
                         "clsight query RUN lists them")
    else:
        sql = name_or_sql
    try:
        statements = connection.extract_statements(sql)
        if [s.type for s in statements] not in ([duckdb.StatementType.SELECT],
                                                [duckdb.StatementType.EXPLAIN]):
            raise UsageError("one SELECT statement is needed: a run is read-only")
        wanted = statements[0].named_parameters
        values = _values(wanted, parameters(sql), given, name_or_sql)
        return connection.sql(sql, params=values).arrow()
    except duckdb.Error as error:
        raise ClsightError(str(error)) from error


def failed_checks(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Checks in sql/checks that return rows, and how many."""
    counts = {
        check: len(connection.sql(sql).to_arrow_table())
        for check, sql in sql_files("checks").items()
    }
    return {check: count for check, count in counts.items() if count}


def at(connection: duckdb.DuckDBPyConnection, run: Path) -> duckdb.DuckDBPyConnection:
    """Resolve the views' relative paths in the run folder; fetch nothing from elsewhere."""
    connection.execute(f"SET file_search_path = '{quoted(run.resolve())}'")
    connection.execute("SET autoinstall_known_extensions = false")
    return connection


def _values(
    wanted: set[str], defaults: dict[str, str | None], given: dict[str, str], name: str
) -> dict[str, str]:
    if unknown := given.keys() - wanted:
        raise UsageError(f"{name} has no parameter {', '.join(sorted(unknown))}; "
                         f"it has {', '.join(sorted(wanted)) or 'none'}")
    values = {key: given.get(key, defaults.get(key)) for key in wanted}
    if missing := [key for key, value in values.items() if value is None]:
        raise UsageError(f"{name} needs -p {' -p '.join(f'{key}=…' for key in sorted(missing))}")
    return {key: value for key, value in values.items() if value is not None}


def views_in_order(views: dict[str, str]) -> list[str]:
    """The views in an order in which they can be created: each after those that it reads."""
    needs = {
        view: {other for other in views if re.search(rf"\b(?:FROM|JOIN|,)\s+{other}\b", sql)}
        - {view}
        for view, sql in views.items()
    }
    return list(TopologicalSorter(needs).static_order())


def quoted(path: Path) -> str:
    """The path within an SQL string."""
    return str(path).replace("'", "''")
