"""A run in DuckDB: its relations, and named queries."""

import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from threading import Lock

import duckdb
import pyarrow as pa

from clsight import plan as plans
from clsight import store
from clsight.errors import ClsightError, UsageError, said
from clsight.tables import DATABASE

_PARAMETER = re.compile(r"^-- Parameter: *(\w+)(?: *= *(\S+))? *(.*(?:\n--  +.*)*)", re.MULTILINE)
KINDS = ("views", "queries", "checks")
ROWS_PER_BATCH = 131_072
_PATTERN = re.compile(r"'([^']*\*\.parquet|\*/[^']*\.parquet)'")
_locking = Lock()
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
    return {name: default for name, (default, _) in described(sql).items()}


def described(sql: str) -> dict[str, tuple[str | None, str]]:
    """Parameters that a query's header declares -> default (None: must be given), description."""
    return {name: (default or None, re.sub(r"\n--\s*", " ", text).strip())
            for name, default, text in _PARAMETER.findall(sql)}


def connect(run: Path, limits: Mapping[str, str] | None = None) -> duckdb.DuckDBPyConnection:
    """Open the database of a run, read-only; the run folder may have been moved.

    Args:
        run: the run folder.
        limits: settings of DuckDB for all connections of this process, such as its `memory_limit`.

    Raises:
        UsageError: the run is not complete yet.
        ClsightError: the file is damaged.
    """
    plans.load(run)
    if not store.fetched(run / DATABASE).is_file():
        raise UsageError(f"{run} has no {DATABASE} yet: let clsight run finish first")
    try:
        connection = duckdb.connect(run / DATABASE, read_only=True)
        _lock_down(connection, run, limits or {})
    except duckdb.Error as error:
        raise ClsightError(f"{run / DATABASE} cannot be opened ({said(error)}); clsight verify "
                           f"{run} --repair makes it again") from error
    return connection


def _lock_down(
    connection: duckdb.DuckDBPyConnection, run: Path, limits: Mapping[str, str]
) -> None:
    """Let queries read the run's own files and nothing else, for as long as the database is open.

    DuckDB compares paths as they are written, so the patterns of the views are allowed as such: a
    pattern, unlike a plain name, is looked up in the run folder alone. All connections of a process
    to one database share their settings, and once locked these cannot be set again.
    """
    with _locking:
        (locked,) = connection.sql("SELECT current_setting('lock_configuration')").fetchall()[0]
        if locked:
            return
        at(connection, run)
        folder = quoted(run.resolve())
        patterns = sorted(set(_PATTERN.findall("".join(
            sql for kind in KINDS for sql in sql_files(kind).values()))))
        for setting in (
            *(f"{name} = '{value}'" for name, value in limits.items()),
            # Names of tables would otherwise be looked up among Python's variables.
            "GLOBAL python_enable_replacements = false",
            "autoload_known_extensions = false",
            f"allowed_directories = ['{folder}']",
            f"allowed_paths = {patterns}",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")


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
    connection: duckdb.DuckDBPyConnection, name_or_sql: str, given: dict[str, str],
    rows_per_batch: int = ROWS_PER_BATCH,
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
        sql.encode()
        statements = connection.extract_statements(sql)
        # Not EXPLAIN either: with ANALYZE it runs what it explains, COPY ... TO among others.
        if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
            raise UsageError("one SELECT statement is needed: a run is read-only")
        fetch_sources(_run_of(connection), sql)
        wanted = statements[0].named_parameters
        values = _values(wanted, parameters(sql), given, name_or_sql)
        reader = connection.sql(sql, params=values).arrow(rows_per_batch)
        return pa.RecordBatchReader.from_batches(reader.schema, _errors_named(reader))
    except UnicodeError as error:
        raise UsageError(f"the question is not valid Unicode: {error}") from error
    except duckdb.Error as error:
        raise ClsightError(str(error)) from error


def _errors_named(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of an answer; what goes wrong while it is worked out is a sentence as well."""
    try:
        yield from reader
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise ClsightError(str(error)) from error


def failed_checks(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Checks in sql/checks that return rows, and how many."""
    fetch_sources(_run_of(connection), *sql_files("checks").values())
    try:
        counts = {
            check: len(connection.sql(sql).to_arrow_table())
            for check, sql in sql_files("checks").items()
        }
    except duckdb.Error as error:
        raise ClsightError(f"the checks cannot be asked: {said(error)}") from error
    return {check: count for check, count in counts.items() if count}


def fetch_sources(run: Path, *questions: str) -> None:
    """Bring the shards that questions read, of a run that lies in object storage.

    Whole folders of them: those that the questions name, and the views in them.
    """
    if store.of(run) is None:
        return
    views = {name: sql for name, sql in sql_files("views").items() if "REPLACE VIEW" in sql}
    patterns, waiting = set[str](), [*questions]
    while waiting:
        sql = waiting.pop()
        patterns.update(_PATTERN.findall(sql))
        waiting += [views.pop(view) for view in [*views] if _reads(sql, view)]
    models = plans.load(run).models
    store.fetch(*(run / pattern.replace("*", model, 1).rpartition("/")[0]
                  for pattern in sorted(patterns)
                  for model in (models if pattern.startswith("*/") else ["*"])))


def at(connection: duckdb.DuckDBPyConnection, run: Path) -> duckdb.DuckDBPyConnection:
    """Resolve the views' relative paths in the run folder; fetch nothing from elsewhere."""
    plans.refuse_bad_folder(run)
    connection.execute(f"SET GLOBAL file_search_path = '{quoted(run.resolve())}'")
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
        view: {other for other in views if _reads(sql, other)} - {view}
        for view, sql in views.items()
    }
    return list(TopologicalSorter(needs).static_order())


def _reads(sql: str, relation: str) -> bool:
    """Whether SQL reads a relation, or at least a list in it has its name."""
    pattern = rf'(?:\b(?:FROM|JOIN)|,)\s+"?{relation}\b'
    return re.search(pattern, sql, re.IGNORECASE) is not None


def _run_of(connection: duckdb.DuckDBPyConnection) -> Path:
    """The run folder of a connection; see `at`."""
    (folder,), *_ = connection.sql("SELECT current_setting('file_search_path')").fetchall()
    return Path(folder)


def quoted(path: Path) -> str:
    """The path within an SQL string."""
    return str(path).replace("'", "''")
