"""Scored shards -> the run's database: strata, sums of each shard, tests, and the relations.

DuckDB has what needs all documents at once. Sums of shards and tests of blocks of units are jobs,
which an executor's workers do like the shards of a run; see `shard_sums` and `block_tests`.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsight import block_tests, blocks, faithfulness, shards, store, tables, units
from clsight import stage as stages
from clsight.block_tests import BlockTests
from clsight.clock import Clock
from clsight.database import at, quoted, sql_files, views_in_order
from clsight.dataset import file_sha256
from clsight.errors import ClsightError, said
from clsight.executors.jobs import Executor, Place
from clsight.plan import Plan
from clsight.shard_sums import ShardSums
from clsight.stage import REFERENCES, Documents, Stage
from clsight.statistics import Moments, Options
from clsight.tested import numbered

MEMORY_LIMIT = "1GB"
"""For DuckDB while it builds a run; beyond it, the disk is used."""
SCRATCH = "statistics"
"""Folder of a run for what passes between workers."""

Progress = Callable[[int, int], None]
Work = Callable[[type[ShardSums | BlockTests], list[str]], None]
"""work(kind of worker, names of jobs)"""


def build(
    run: Path, plan: Plan, options: Options, progress: Progress = lambda *_: None,
    executor: Executor | None = None,
) -> None:
    """Make the database of a run whose shards are scored; replaces an earlier one whole.

    Args:
        run: the run folder.
        plan: its plan.
        options: how words are tested.
        progress: called with the documents whose sums were made, and their number in all.
        executor: whose workers sum and test; by default this process.

    Raises:
        ClsightError: DuckDB could not do it, for want of disk or memory most likely.
    """
    try:
        _build(run, plan, options, progress, executor or _this_process())
    except duckdb.Error as error:
        raise ClsightError(f"{run}: the statistics could not be made ({said(error)}); shards are "
                           "kept, the same command tries again") from error


def _this_process() -> Executor:
    from clsight.executors.local import Local

    return Local([Place("cpu")])


def _build(
    run: Path, plan: Plan, options: Options, progress: Progress, executor: Executor
) -> None:
    store.fetch(run / "documents", *(run / model / made for model in plan.models
                                     for made in ("", *shards.MADE)))
    with (shards.replaced(run / tables.DATABASE, _refuse_half) as path,
          _opened(path, run) as connection, _scratch(run, executor) as scratch):
        _store(connection, "measured_faithfulness", faithfulness.read(run, plan))
        _relations(connection, plan, options)
        stage = _stage(connection, run, plan, options, scratch)
        work = partial(_work, run, stage, executor, progress)
        _sum(connection, run, stage, work)
        if len(stage.units):
            _test(connection, run, stage, work)
        # Closing does the same, and says nothing where it fails.
        connection.execute("CHECKPOINT")


@contextmanager
def _scratch(run: Path, executor: Executor) -> Iterator[Path]:
    """A folder that workers share, and no straggler of an earlier attempt knows.

    It goes through the storage only where workers may be on other machines.
    """
    base = run / f"{'' if executor.elsewhere and store.of(run) else shards.PARTIAL}{SCRATCH}"
    shards.remove([base])
    try:
        yield base / uuid4().hex
    finally:
        shards.remove([base])


def _stage(
    connection: duckdb.DuckDBPyConnection, run: Path, plan: Plan, options: Options, scratch: Path
) -> Stage:
    """What is tested, and on which documents."""
    groups = units.read_groups(options.groups) if options.groups else units.Groups()
    tested = units.tested(connection, options.min_documents, options.bigrams, groups)
    slices = _write_documents(connection, plan, Documents(scratch))
    return Stage(str(scratch.relative_to(run)), plan, options, tested,
                 blocks.cut(tested.table["n_documents"].to_numpy()), slices)


def _work(
    run: Path, stage: Stage, executor: Executor, progress: Progress,
    kind: type[ShardSums | BlockTests], names: list[str],
) -> None:
    """Let workers do jobs."""
    def report(_: str, n: int) -> None:
        progress(n, stage.plan.n_rows or 0)

    make = partial(kind, store.place(run.resolve()), stage)
    for _ in executor.run(make, [stages.job(name) for name in names], report, Clock()):
        pass


def renew_faithfulness(run: Path, plan: Plan) -> None:
    """Put what is measured by now into a copy of a run's database, which takes its place.

    Raises:
        ClsightError: DuckDB could not do it, for want of disk most likely.
    """
    database = run / tables.DATABASE
    try:
        with shards.replaced(database, _refuse_half) as path:
            shutil.copyfile(store.fetched(database), path)
            with at(duckdb.connect(path), run) as connection:
                _store(connection, "measured_faithfulness", faithfulness.read(run, plan))
                connection.execute("CHECKPOINT")
    except duckdb.Error as error:
        raise ClsightError(f"{database} could not be renewed ({said(error)}); it is as it was, the "
                           "same command tries again") from error


def is_built(run: Path, plan: Plan, options: Options) -> bool:
    """True where the database was made from this plan, with these options and these relations."""
    if not store.fetched(run / tables.DATABASE).is_file():
        return False
    try:
        return _parameters_of(run / tables.DATABASE) == [_parameters(plan, options)]
    except duckdb.Error:
        return False


def _refuse_half(database: Path) -> None:
    """Raise where a database that was just closed is not whole by itself, or cannot be read."""
    if database.with_name(f"{database.name}.wal").exists():
        raise duckdb.IOException("its last changes are not in the file: the disk is full?")
    _parameters_of(database)


def _parameters_of(database: Path) -> list[dict[str, Any]]:
    """What a database was made from.

    Raises:
        duckdb.Error: it is damaged.
    """
    with duckdb.connect(database, read_only=True) as connection:
        stored: pa.Table = connection.sql("FROM run_parameters").to_arrow_table()
    return list(stored.to_pylist())


def _opened(path: Path, run: Path) -> duckdb.DuckDBPyConnection:
    path.unlink(missing_ok=True)
    connection = at(duckdb.connect(path), run)
    connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
    spilled = path.with_name(f"{path.name}.tmp")
    connection.execute(f"SET temp_directory = '{quoted(spilled)}'")
    return connection


def _relations(
    connection: duckdb.DuckDBPyConnection, plan: Plan, options: Options
) -> None:
    """All relations; those that this stage fills are empty yet."""
    for kind, values in (("model_name", plan.models), ("score_name", plan.scores)):
        names = ", ".join(f"'{value}'" for value in values)
        connection.execute(f"CREATE TYPE {kind} AS ENUM ({names})")
    _store(connection, "run_parameters", pa.Table.from_pylist([_parameters(plan, options)]))
    for table in ("outcomes", "tested_words", "model_pairs", "model_heterogeneity",
                  "tested_slices", "slice_heterogeneity"):
        _store(connection, table, getattr(tables, table)().empty_table())
    views = sql_files("views")
    for view in views_in_order(views):
        if view != "word_sums":  # whose files are not there yet
            connection.execute(views[view])
    connection.execute(_OUTCOMES)


_OUTCOMES = """
INSERT INTO outcomes BY NAME
SELECT
    model, correct,
    count(*) AS n,
    sum(confidence) AS confidence,
    sum(n_pieces) AS pieces,
    count(*) FILTER (WHERE truncated) AS truncated,
    count(*) FILTER (WHERE retried) AS retried
FROM predictions
GROUP BY model, correct
UNION ALL BY NAME
SELECT model, count(*) AS n FROM bad_documents WHERE model IS NOT NULL GROUP BY model
"""


def _write_documents(
    connection: duckdb.DuckDBPyConnection, plan: Plan, documents: Documents
) -> tuple[str, ...]:
    """Write the tested documents; returns the values within which words are tested."""
    for model in plan.models:
        own = _strata(connection, model)
        documents.write({f"{model}.{name}": array for name, array in own.items()})
    table: pa.Table = connection.sql(
        'SELECT "row", dense_rank() OVER (ORDER BY any_value(p.label)) AS label, '
        "nullif(any_value(slice), '') AS slice "
        'FROM predictions AS p JOIN documents USING ("row") '
        'SEMI JOIN tested_documents USING ("row") GROUP BY "row" ORDER BY "row"',
    ).to_arrow_table()
    slices: list[str] = []
    if plan.dataset.group_by is not None:
        slices = sorted(table["slice"].unique().drop_null().to_pylist())
    code = pc.fill_null(pc.index_in(table["slice"], pa.array(slices, pa.string())), -1)
    documents.write({"rows": table["row"].to_numpy(), "label": table["label"].to_numpy(),
                     "slice": code.to_numpy()})
    return tuple(slices)


def _strata(connection: duckdb.DuckDBPyConnection, model: str) -> dict[str, Any]:
    """stratum [2, N], error [N] and confidence [N] of the tested documents."""
    stored = connection.sql(
        'SELECT "row", any_value(s.error) AS error, '
        "max(stratum) FILTER (reference = 'predicted') AS predicted, "
        "max(stratum) FILTER (reference = 'label') AS label, "
        "any_value(confidence) AS confidence "
        'FROM strata AS s JOIN predictions AS p USING (model, "row") WHERE model = $model '
        'GROUP BY "row" ORDER BY "row"',
        params={"model": model},
    ).to_arrow_table()
    return {
        "stratum": np.stack([stored[name].to_numpy().astype(np.int32) for name in REFERENCES]),
        "error": stored["error"].to_numpy(), "confidence": stored["confidence"].to_numpy(),
    }


def _sum(
    connection: duckdb.DuckDBPyConnection, run: Path, stage: Stage, work: Work
) -> None:
    """Make the sums of all shards."""
    folders = [run / model / "sums" for model in stage.models]
    shards.remove(folders)  # also of this machine, where another one makes them
    work(ShardSums, stage.plan.shard_names())
    store.fetch(*folders)
    connection.execute(sql_files("views")["word_sums"])


def _test(
    connection: duckdb.DuckDBPyConnection, run: Path, stage: Stage, work: Work
) -> None:
    """Test all units, block by block, and store what comes out."""
    scratch = run / stage.scratch
    moments = [_moments(connection, stage, model) for model in stage.models]
    block_tests.write_moments(scratch, moments)
    names = [block_tests.block_name(block) for block in range(len(stage.blocks) - 1)]
    work(BlockTests, names)
    found = [stages.read_arrays(scratch / block_tests.FOUND / name) for name in names]
    documents = Documents(scratch)
    strata = [documents.strata(model) for model in stage.models]
    for i, test in enumerate(block_tests.tests(stage, documents, strata, moments)):
        for name, table in test.tables([numbered(block, i) for block in found]).items():
            connection.register("tested", table)
            connection.execute(f"INSERT INTO {name} FROM tested")
            connection.unregister("tested")


def _moments(connection: duckdb.DuckDBPyConnection, stage: Stage, model: str) -> Moments:
    """Sums of all units of a model, added up over shards and strata in SQL."""
    shape = (len(REFERENCES), len(stage.plan.scores), len(stage.units))
    sums: dict[str, Any] = {name: np.zeros(shape) for name in _OF_STRATA}
    counts = np.zeros((2, len(stage.units)), dtype=np.int64)
    names = stage.units.table.select(["kind", "form"])
    connection.register("tested_unit", names.append_column(
        "unit", pa.array(np.arange(len(stage.units)), pa.int32())))
    for (i, reference), (j, score) in product(enumerate(REFERENCES), enumerate(stage.plan.scores)):
        table = connection.sql(
            _moments_query(model, reference, score),
            params={"model": model, "reference": reference}).to_arrow_table()
        unit = table["unit"].to_numpy()
        for name in _OF_STRATA:
            sums[name][i, j, unit] = table[f"{score}_{name}"].to_numpy()
        for k, name in enumerate(("n_documents", "n_errors")):
            counts[k, unit] = table[name].to_numpy()
    connection.unregister("tested_unit")
    return Moments(n_documents=counts[0], n_errors=counts[1], **sums)


def _moments_query(model: str, reference: str, score: str) -> str:
    """For one score: all at once would take half the time, and four times the memory."""
    held, added = (
        ", ".join(f"{expression.format(s=score)} AS {score}_{name}"
                  for name, expression in expressions.items())
        for expressions in (_OF_UNITS, _OF_STRATA))
    return _MOMENTS.format(folder=quoted(Path(model)), reference=reference, held=held, added=added)


_OF_UNITS = {
    "s1": "sum({s}_s1)", "s2": "sum({s}_s2)", "s3": "sum({s}_s3)", "lifted": "sum({s}_lift)",
    "se": "coalesce(sum({s}_s1) FILTER (error), 0)",
}
"""Sums of a unit over a stratum."""
# T, its expectation, variance and third central moment under permuting errors within strata: see
# `statistics`; the third is that of a sum over k of n documents drawn without replacement. Where
# all documents of a stratum have the same mass, rounding would leave a variance.
_OF_STRATA = {
    "total": "sum({s}_s1)",
    "in_errors": "sum({s}_se)",
    "lift": "sum({s}_lifted)",
    "excess": "sum({s}_se - k * {s}_s1 / n)",
    "expected": "sum(k * {s}_s1 / n)",
    "variance": "sum(CASE WHEN n > 1 AND {s}_s2 - {s}_s1 ** 2 / n > 1e-12 * {s}_s2 THEN "
                "k * (n - k) / n * ({s}_s2 - {s}_s1 ** 2 / n) / (n - 1) ELSE 0 END)",
    "third": "sum(CASE WHEN n > 2 THEN k * (n - k) * (n - 2 * k) / (n * (n - 1) * (n - 2)) "
             "* ({s}_s3 - 3 * {s}_s1 * {s}_s2 / n + 2 * {s}_s1 ** 3 / n ** 2) ELSE 0 END)",
}
"""Sums over the strata, as `Moments` has them."""
_MOMENTS = """
WITH size AS (
    SELECT stratum, count(*)::DOUBLE AS n, (count(*) FILTER (error))::DOUBLE AS k
    FROM strata WHERE model = $model AND reference = $reference
    GROUP BY stratum
),
held AS (
    SELECT
        unit, {reference}_stratum AS stratum,
        sum(n_documents) AS n_documents,
        coalesce(sum(n_documents) FILTER (error), 0) AS n_errors,
        {held}
    FROM read_parquet('{folder}/sums/*.parquet') JOIN tested_unit USING (kind, form)
    GROUP BY unit, stratum
)
SELECT unit, sum(h.n_documents)::BIGINT AS n_documents, sum(n_errors)::BIGINT AS n_errors, {added}
FROM held AS h JOIN size USING (stratum)
GROUP BY unit
"""


def _parameters(plan: Plan, options: Options) -> dict[str, Any]:
    content = file_sha256([Path(options.groups)]) if options.groups else None
    relations = hashlib.sha256("".join(sql_files("views").values()).encode()).hexdigest()
    return {"fingerprint": plan.fingerprint, "n_shards": plan.n_shards, **asdict(options),
            "groups_sha256": content, "relations_sha256": relations}


def _store(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("stored", table)
    connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM stored")
    connection.unregister("stored")
