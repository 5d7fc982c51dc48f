"""Scored shards -> the run's database: strata, sums of each shard, tests, and the relations."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from clsight import comparisons, faithfulness, masses, shards, store, tables, units
from clsight.blocks import Blocks
from clsight.bootstrap import Bootstrap
from clsight.database import at, quoted, sql_files, views_in_order
from clsight.dataset import file_sha256
from clsight.errors import ClsightError, said
from clsight.masses import Mass
from clsight.permutations import Permutations
from clsight.plan import Plan
from clsight.replicates import Strata
from clsight.statistics import Moments, Options, degrees_of_freedom
from clsight.tested import Block, Heterogeneity, Names, PairTests, SliceTests, WordTests
from clsight.units import Units

MEMORY_LIMIT = "1GB"
"""For DuckDB while it builds a run; beyond it, the disk is used."""
REFERENCES = ("predicted", "label")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Stage:
    """What the parts of this stage share."""

    run: Path
    plan: Plan
    options: Options
    connection: duckdb.DuckDBPyConnection
    """The database that is made."""
    blocks: Blocks
    """The pairs of all shards and models."""
    units: Units
    strata: dict[str, Strata]
    """Of each model; all have the same rows."""

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(self.plan.models)


def build(
    run: Path, plan: Plan, options: Options, progress: Progress = lambda *_: None
) -> None:
    """Make the database of a run whose shards are scored; replaces an earlier one whole.

    Args:
        run: the run folder.
        plan: its plan.
        options: how words are tested.
        progress: called with the documents whose sums were made, and their number in all.

    Raises:
        ClsightError: DuckDB could not do it, for want of disk or memory most likely.
    """
    try:
        _build(run, plan, options, progress)
    except duckdb.Error as error:
        raise ClsightError(f"{run}: the statistics could not be made ({said(error)}); shards are "
                           "kept, the same command tries again") from error


def _build(run: Path, plan: Plan, options: Options, progress: Progress) -> None:
    store.fetch(run / "documents", *(run / model / made for model in plan.models
                                     for made in ("", *shards.MADE)))
    with shards.replaced(run / tables.DATABASE, _refuse_half) as path, ExitStack() as stack:
        connection = stack.enter_context(_opened(path, run))
        scratch = Path(stack.enter_context(
            TemporaryDirectory(dir=run, prefix=f"{shards.PARTIAL}pairs-")))
        _store(connection, "measured_faithfulness", faithfulness.read(run, plan))
        _relations(connection, plan, options)
        groups = units.read_groups(options.groups) if options.groups else units.Groups()
        tested = units.tested(connection, options.min_documents, options.bigrams, groups)
        strata = {model: _strata(connection, model) for model in plan.models}
        blocks = Blocks(scratch, tested.table["n_documents"].to_numpy())
        stage = Stage(run, plan, options, connection, blocks, tested, strata)
        _sums(stage, progress)
        _test(stage)
        # Closing does the same, and says nothing where it fails.
        connection.execute("CHECKPOINT")


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


def _strata(connection: duckdb.DuckDBPyConnection, model: str) -> Strata:
    stored = connection.sql(
        'SELECT "row", any_value(error) AS error, '
        "max(stratum) FILTER (reference = 'predicted') AS predicted, "
        "max(stratum) FILTER (reference = 'label') AS label "
        'FROM strata WHERE model = $model GROUP BY "row" ORDER BY "row"',
        params={"model": model},
    ).to_arrow_table()
    return Strata(
        rows=stored["row"].to_numpy(),
        stratum=np.stack([stored[name].to_numpy().astype(np.int32) for name in REFERENCES]),
        error=stored["error"].to_numpy(),
    )


def _sums(stage: Stage, progress: Progress) -> None:
    """Write each shard's sums, and put its pairs into their blocks."""
    for name in stage.plan.shard_names():
        row, offsets, places = units.places(stage.run / "documents" / name, stage.units)
        place, x = _places_among(stage, row), []
        for model, strata in stage.strata.items():
            scores = masses.read_scores(stage.run / model / "scores" / name, stage.plan.scores,
                                        offsets)
            pairs = masses.pairs(offsets, places, scores, len(stage.units))
            n_words = np.diff(offsets)[pairs.document][place[pairs.document] >= 0]
            pairs = masses.among(pairs, place)
            masses.write_sums(stage.run / model / "sums" / name, model, stage.units,
                              stage.plan.scores, pairs, strata.stratum, strata.error, n_words)
            x.append(pairs.x)
        stage.blocks.add(pairs.unit, pairs.document, np.concatenate(x))
        progress(len(row), stage.plan.n_rows or 0)
    stage.connection.execute(sql_files("views")["word_sums"])


def _places_among(stage: Stage, row: Any) -> Any:
    """Index of each row among the tested documents; -1 where it is not one."""
    rows = next(iter(stage.strata.values())).rows
    place = np.searchsorted(rows, row)
    return np.where(np.append(rows, -1)[place] == row, place, -1)


def _test(stage: Stage) -> None:
    """Test all units, block by block, and store what comes out."""
    if not len(stage.units):
        return
    options, strata = stage.options, list(stage.strata.values())
    bootstrap = Bootstrap(strata, options.seed, options.bootstrap)
    tests = _tests(stage)
    for own in _blocks(stage, bootstrap):
        for test in tests:
            test.add(own)
    for test in tests:
        for name, table in test.tables().items():
            stage.connection.register("tested", table)
            stage.connection.execute(f"INSERT INTO {name} FROM tested")
            stage.connection.unregister("tested")


def _tests(stage: Stage) -> list[WordTests | PairTests | SliceTests | Heterogeneity]:
    """Each model's, each pair of models', and each model's within slices."""
    options, strata = stage.options, list(stage.strata.values())
    names, budget = Names(stage.units, stage.plan.scores), options.budget(len(stage.units))
    moments = [_moments(stage, model) for model in stage.models]
    drawn = partial(Permutations, seed=options.seed, budget=budget)
    tests: list[Any] = [
        WordTests(names, model, i, strata[i], moments[i], drawn(strata[i]), options)
        for i, model in enumerate(stage.models)
    ]
    documents = _documents(stage)
    for i, j in combinations(range(len(strata)), 2):
        one, other = stage.models[i], stage.models[j]
        certainty = documents[f"confidence_{i}"] - documents[f"confidence_{j}"]
        discordant = comparisons.paired(strata[i], strata[j], documents["label"], certainty,
                                        options.seed, budget)
        tests.append(PairTests(names, (one, other), (i, j), (moments[i], moments[j]),
                               (strata[i], strata[j]), discordant, options))
    if len(strata) > 1:
        tests.append(Heterogeneity(names, moments))
    if stage.plan.dataset.group_by is not None:
        values = [value for value in np.unique(documents["slice"]) if value]
        for i, model in enumerate(stage.models):
            parts = [comparisons.part(value, documents["slice"] == value, strata[i], options.seed,
                                      budget) for value in values]
            tests.append(SliceTests(names, model, i, parts, options))
    return tests


def _documents(stage: Stage) -> dict[str, Any]:
    """[N] label (a number), slice ("" for none) and each model's confidence."""
    confidences = ", ".join(
        f"max(confidence) FILTER (model = ${i}) AS confidence_{i - 1}"
        for i in range(1, len(stage.models) + 1))
    table: pa.Table = stage.connection.sql(
        f'SELECT "row", dense_rank() OVER (ORDER BY any_value(p.label)) AS label, '
        f"coalesce(any_value(slice), '') AS slice, {confidences} "
        'FROM predictions AS p JOIN documents USING ("row") '
        'SEMI JOIN tested_documents USING ("row") GROUP BY "row" ORDER BY "row"',
        params=stage.models,
    ).to_arrow_table()
    return {str(name): table[name].to_numpy() for name in table.column_names}


def _moments(stage: Stage, model: str) -> Moments:
    """Sums of all units of a model, added up over shards and strata in SQL."""
    shape = (len(REFERENCES), len(stage.plan.scores), len(stage.units))
    sums: dict[str, Any] = {name: np.zeros(shape) for name in _OF_STRATA}
    counts = np.zeros((2, len(stage.units)), dtype=np.int64)
    names = stage.units.table.select(["kind", "form"])
    stage.connection.register("tested_unit", names.append_column(
        "unit", pa.array(np.arange(len(stage.units)), pa.int32())))
    for (i, reference), (j, score) in product(enumerate(REFERENCES), enumerate(stage.plan.scores)):
        table = stage.connection.sql(
            _moments_query(model, reference, score),
            params={"model": model, "reference": reference}).to_arrow_table()
        unit = table["unit"].to_numpy()
        for name in _OF_STRATA:
            sums[name][i, j, unit] = table[f"{score}_{name}"].to_numpy()
        for k, name in enumerate(("n_documents", "n_errors")):
            counts[k, unit] = table[name].to_numpy()
    stage.connection.unregister("tested_unit")
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


def _blocks(stage: Stage, bootstrap: Bootstrap) -> Iterator[Block]:
    """Units, their masses by each model and what resamples say of them, block by block."""
    for own, offsets, document, x in stage.blocks:
        masses_of = [Mass(offsets, document, part) for part in np.split(x, len(stage.models))]
        freedom = [*map(degrees_of_freedom, masses_of, stage.strata.values())]
        yield Block(own, masses_of, bootstrap.resample(masses_of), freedom)


def _parameters(plan: Plan, options: Options) -> dict[str, Any]:
    content = file_sha256([Path(options.groups)]) if options.groups else None
    relations = hashlib.sha256("".join(sql_files("views").values()).encode()).hexdigest()
    return {"fingerprint": plan.fingerprint, "n_shards": plan.n_shards, **asdict(options),
            "groups_sha256": content, "relations_sha256": relations}


def _store(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("stored", table)
    connection.execute(f"CREATE OR REPLACE TABLE {name} AS FROM stored")
    connection.unregister("stored")
