"""A run in DuckDB: relations from sql/views, word statistics, named queries."""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from clsight import plan as plans
from clsight import shards, statistics, tables
from clsight.errors import ClsightError, UsageError
from clsight.plan import Plan

FILE = "clsight.duckdb"
PAIRS_PER_BLOCK = 250_000
"""(document, word) pairs in memory at a time while words are tested; 64 bytes a pair."""
WORDS_PER_PART = 5_000_000
"""Words of the documents whose masses are worked out at a time, within `MEMORY_LIMIT`."""
MEMORY_LIMIT = "256MB"
"""For DuckDB while it builds a run; beyond it, DuckDB uses the disk."""

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
    return _at(connection, run)


def catalogue() -> pa.RecordBatchReader:
    """What can be asked by name: one row per relation and query, with its purpose."""
    rows = [
        {"name": name, "kind": kind, "purpose": purpose(sql),
         "parameters": [key if default is None else f"{key}={default}"
                        for key, default in parameters(sql).items()]}
        for kind, files in (("relation", sql_files("views")), ("query", sql_files("queries")))
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
    named = sql_files("queries")
    if name_or_sql in named:
        sql = named[name_or_sql]
    elif name_or_sql in sql_files("views"):
        sql = f'FROM "{name_or_sql}"'
    elif re.fullmatch(r"\w+", name_or_sql):
        raise UsageError(f"there is no query or relation {name_or_sql!r}; "
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


def build(
    run: Path, plan: Plan, options: statistics.Options,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Make the database of a run whose shards are complete; replaces an earlier one whole.

    Args:
        run: the run folder.
        plan: its plan.
        options: how words are tested.
        progress: called with the documents whose words were tested, and their number in all.
    """
    with shards.replaced(run / FILE) as path:
        path.unlink(missing_ok=True)
        connection = _at(duckdb.connect(path), run)
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute(f"SET temp_directory = '{_quoted(path.with_suffix('.tmp'))}'")
        names = ", ".join(f"'{name}'" for name in plan.models)
        connection.execute(f"CREATE TYPE model_name AS ENUM ({names})")
        names = ", ".join(f"'{name}'" for name in plan.scores)
        connection.execute(f"CREATE TYPE score_name AS ENUM ({names})")
        _store(connection, "run_parameters", pa.Table.from_pylist([_parameters(plan, options)]))
        views = sql_files("views")
        _store(connection, "outcomes", tables.outcomes().empty_table())
        _store(connection, "tested_words", tables.tested_words().empty_table())
        for view in _in_order(views):
            connection.execute(views[view])
        connection.execute(_OUTCOMES)
        # All models share the documents, and so the words that are tested.
        connection.execute(_TESTED, {"min_documents": options.min_documents})
        connection.execute(_PARTS, {"words": WORDS_PER_PART})
        for model in plan.models:
            for tested in tested_words(connection, model, plan.scores, options):
                connection.register("tested_block", tested)
                connection.execute("INSERT INTO tested_words FROM tested_block")
                connection.unregister("tested_block")
            progress(plan.n_rows or 0, len(plan.models) * (plan.n_rows or 0))
        connection.close()


def is_built(run: Path, plan: Plan, options: statistics.Options) -> bool:
    """True where the database was made from this plan with these options."""
    if not (run / FILE).is_file():
        return False
    try:
        with duckdb.connect(run / FILE, read_only=True) as connection:
            stored = connection.sql("FROM run_parameters").to_arrow_table().to_pylist()
    except duckdb.Error:
        return False
    return bool(stored == [_parameters(plan, options)])


def failed_checks(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Checks in sql/checks that return rows, and how many."""
    counts = {
        check: len(connection.sql(sql).to_arrow_table())
        for check, sql in sql_files("checks").items()
    }
    return {check: count for check, count in counts.items() if count}


def tested_words(
    connection: duckdb.DuckDBPyConnection, model: str, scores: tuple[str, ...],
    options: statistics.Options,
) -> Iterator[pa.Table]:
    """`tables.tested_words` of a model, in blocks of bounded memory."""
    strata = _strata(connection, model)
    _tested_mass(connection, model)
    tested = connection.sql("FROM tested ORDER BY word").to_arrow_table()
    ends = np.cumsum(tested["n_documents"].to_numpy())
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, before + PAIRS_PER_BLOCK, side="right"))
        last = max(last, first + 1)
        block = tested.slice(first, last - first)
        yield _block(connection, model, scores, block, first, strata, options)
        first = last


_TESTED = """
CREATE OR REPLACE TEMP TABLE tested AS
SELECT row_number() OVER (ORDER BY form) - 1 AS word, form, count(*) AS n_documents
FROM (
    SELECT unnest(list_distinct(form)) AS form
    FROM read_parquet('documents/*.parquet') WHERE reason IS NULL
)
GROUP BY form HAVING count(*) >= $min_documents"""

_PARTS = """
CREATE OR REPLACE TEMP TABLE parts AS
SELECT min("row") AS first, max("row") AS last
FROM (SELECT "row", sum(n_words) OVER (ORDER BY "row") // $words AS part FROM documents)
GROUP BY part"""

_TESTED_MASS = """
SELECT word, word_mass.* EXCLUDE (model, form)
FROM word_mass JOIN tested USING (form)
WHERE model = $model AND "row" BETWEEN $first AND $last
ORDER BY word, "row"
"""

_OUTCOMES = """
INSERT INTO outcomes BY NAME
SELECT
    model, correct,
    count(*) AS n,
    sum(confidence) AS confidence,
    sum(n_pieces) AS pieces,
    count(*) FILTER (WHERE truncated) AS truncated
FROM predictions
GROUP BY model, correct
"""


def _tested_mass(connection: duckdb.DuckDBPyConnection, model: str) -> None:
    """Make the temporary table `tested_mass`: word_mass of a model's tested words.

    Part by part, each sorted by word: what is in memory does not grow with the dataset (in one
    statement 2.5 million documents ran out of `MEMORY_LIMIT`), and a block of words is found by
    its place in each part.
    """
    parts = connection.sql("FROM parts ORDER BY first").to_arrow_table().to_pylist()
    nothing = {"model": model, "first": 0, "last": -1}
    connection.execute(f"CREATE OR REPLACE TEMP TABLE tested_mass AS {_TESTED_MASS}", nothing)
    for part in parts:
        connection.execute(f"INSERT INTO tested_mass {_TESTED_MASS}", {"model": model} | part)


def _block(
    connection: duckdb.DuckDBPyConnection, model: str, scores: tuple[str, ...], tested: pa.Table,
    first: int, strata: statistics.Strata, options: statistics.Options,
) -> pa.Table:
    entries = connection.sql(
        'FROM tested_mass WHERE word >= $first AND word < $last ORDER BY word, "row"',
        params={"first": first, "last": first + len(tested)},
    ).to_arrow_table()
    mass = statistics.Mass(
        offsets=np.concatenate([[0], np.cumsum(tested["n_documents"].to_numpy())]),
        document=np.searchsorted(strata.rows, entries["row"].to_numpy()),
        x=np.stack([entries[score].to_numpy() for score in scores]),
    )
    n_words, n_occurrences = entries["n_words"].to_numpy(), entries["n_occurrences"].to_numpy()
    described = statistics.describe(mass, strata, n_words / n_occurrences)
    result = statistics.test_words(mass, strata, options)
    columns = described | {"z": result.z, "p": result.p, "consistency": result.consistency}
    table = pa.table({
        "model": pa.repeat(model, len(scores) * len(tested)),
        "score": pa.array(np.repeat(scores, len(tested))),
        "form": pa.concat_arrays(tested["form"].chunks * len(scores)),
        **{name: pa.array(values.ravel(), from_pandas=True) for name, values in columns.items()},
    })
    schema = tables.tested_words()
    return table.select(schema.names).cast(schema)


def _strata(connection: duckdb.DuckDBPyConnection, model: str) -> statistics.Strata:
    stored = connection.sql(
        'SELECT "row", any_value(error) AS error, '
        "max(stratum) FILTER (reference = 'predicted') AS predicted, "
        "max(stratum) FILTER (reference = 'label') AS label "
        'FROM strata WHERE model = $model GROUP BY "row" ORDER BY "row"',
        params={"model": model},
    ).to_arrow_table()
    return statistics.Strata(
        rows=stored["row"].to_numpy(),
        stratum=np.stack([stored["predicted"].to_numpy(), stored["label"].to_numpy()]),
        error=stored["error"].to_numpy(),
    )


def _at(connection: duckdb.DuckDBPyConnection, run: Path) -> duckdb.DuckDBPyConnection:
    """Resolve the views' relative paths in the run folder; fetch nothing from elsewhere."""
    connection.execute(f"SET file_search_path = '{_quoted(run.resolve())}'")
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


def _in_order(views: dict[str, str]) -> list[str]:
    """The views in an order in which they can be created: each after those that it reads."""
    needs = {
        view: {other for other in views if re.search(rf"\b(?:FROM|JOIN|,)\s+{other}\b", sql)}
        - {view}
        for view, sql in views.items()
    }
    return list(TopologicalSorter(needs).static_order())


def _parameters(plan: Plan, options: statistics.Options) -> dict[str, Any]:
    return {"fingerprint": plan.fingerprint, **asdict(options)}


def _store(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("stored", table)
    connection.execute(f"CREATE TABLE {name} AS FROM stored")
    connection.unregister("stored")


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
