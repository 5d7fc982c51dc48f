"""Is a run what was planned? Every shard there, byte for byte as written, with its documents.

A repair takes out what is wrong, and what was made from it, and lets the run go on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clsight import build, database, events, faithfulness, lock, pipeline, shards, store, tables
from clsight import plan as plans
from clsight.errors import ClsightError, said
from clsight.plan import Plan
from clsight.statistics import Options

ASIDE = ".set-aside"
"""Ending of files that are no part of a run: no reader sees them, and nothing is lost."""
_SHARDS = "documents/*.parquet", "*/*.parquet", "*/*/*.parquet"

Progress = Callable[[int, int], None]
"""progress(files done since the last call, files in all)"""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in a run."""

    file: str
    """Relative to the run folder."""
    what: str
    kind: str
    """"missing", "damaged", "other" (than planned), "foreign", or "check"."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.file}: {self.what}"


def verify(run: Path, progress: Progress = lambda *_: None) -> list[Problem]:
    """All that is wrong in a run; reads every byte of its shards.

    Args:
        run: the run folder.
        progress: called as files are done.

    Raises:
        UsageError: it is no run, or its plan cannot be read.
    """
    store.fetch_afresh(run)
    plan = plans.load(run)
    found = [Problem(name, why, "damaged") for name, why in plans.damaged(run).items()]
    if plan.n_rows is None:
        return [*found, Problem("documents", "are not complete", "missing")]
    expected = _expected(run, plan)
    for file in expected:
        found += _wrong(run, file)
        progress(1, len(expected))
    wrong = {problem.file for problem in found}
    found += [*_unlike_plan(run, plan, wrong), *_measured_of_another(run, plan, wrong)]
    found += [Problem(file, "is no part of the plan", "foreign")
              for file in _shards(run) - set(expected)]
    return found + _database(run, plan, bool(found))


def repair(
    run: Path, progress: pipeline.Progress = lambda *_: None, device: str = "auto",
) -> list[Problem]:
    """Make again what is wrong, and only that; returns what could not be mended.

    What is no part of the plan gets another ending (`ASIDE`).

    Raises:
        ClsightError: dataset or models are not where they were, or not what they were.
    """
    plan = plans.load(run)
    with lock.held(run), events.logged(run):
        found = verify(run)
        if not found:
            return []
        gone = {file for problem in found if problem.kind != "check"
                for file in _made_of(problem.file, plan)}
        events.event("repair", f"{run}: {len(found)} problems, made again: "
                     f"{', '.join(sorted(gone)) or 'nothing'}", files=sorted(gone))
        for problem in found:
            if problem.kind == "foreign":
                store.rename(run / problem.file, f"{Path(problem.file).name}{ASIDE}")
        shards.remove([run / file for file in sorted(gone) if (run / file).exists()])
        plan.save(run)
    _go_on(run, plan, progress, device)
    return verify(run)


def _go_on(run: Path, plan: Plan, progress: pipeline.Progress, device: str) -> None:
    """The call that made the run, once more; layers that are stored beside the last are kept."""
    data = plan.dataset
    pipeline.run(
        data.path, text=data.text, label=data.label, id=data.id, text_pair=data.text_pair,
        split=data.split, streaming=data.streaming, group_by=data.group_by,
        on_bad_row=data.on_bad_row,
        models={name: model.path for name, model in plan.models.items()}, output=run,
        scores=",".join(plan.scores), target=plan.target, dtype=plan.dtype, device=device,
        shard_size=plan.shard_size, options=Options(**plan.options), progress=progress,
    )


def _made_of(file: str, plan: Plan) -> Iterator[str]:
    """A file and what was made from it; of documents only the file, whose text is the same again.

    The database was made from all of them.
    """
    yield tables.DATABASE
    folder, _, name = file.rpartition("/")
    model, _, made = folder.partition("/")
    if file in plans.FILES or file == tables.DATABASE or name not in plan.shard_names():
        if name in ("head_weights.parquet", faithfulness.FILE):
            yield file
        return
    yield file
    if made in shards.MADE:
        yield from (f"{model}/{later}/{name}" for later in shards.SCORED)


def _expected(run: Path, plan: Plan) -> list[str]:
    """Files of a complete run but for the plan and the database, and what `validate` left."""
    names = plan.shard_names()
    folders = ["documents", *(f"{model}/{made}" for model in plan.models
                              for made in (*shards.MADE, "sums"))]
    weights = [f"{model}/head_weights.parquet" for model in plan.models]
    validated = [file for model in plan.models
                 if (run / (file := f"{model}/{faithfulness.FILE}")).is_file()]
    return [*(f"{folder}/{name}" for folder in folders for name in names), *weights, *validated]


def _shards(run: Path) -> set[str]:
    """All that queries would read as shards."""
    return {path.relative_to(run).as_posix() for pattern in _SHARDS for path in run.glob(pattern)}


def _wrong(run: Path, file: str) -> list[Problem]:
    path = run / file
    if not path.is_file():
        return [Problem(file, "is missing", "missing")]
    try:
        sound = shards.is_sound(path)
    except OSError as error:
        return [Problem(file, f"cannot be read ({error})", "damaged")]
    return [] if sound else [
        Problem(file, "is not as it was written (its checksum differs)", "damaged")]


def _unlike_plan(run: Path, plan: Plan, known: set[str]) -> Iterator[Problem]:
    """Sound shards that are not those of the plan: of other columns, or other documents."""
    for i, name in enumerate(plan.shard_names()):
        file = f"documents/{name}"
        if file in known:
            continue
        first = i * plan.shard_size
        planned = pa.array(range(first, min(first + plan.shard_size, plan.n_rows or 0)), pa.int64())
        documents = pq.read_table(run / file, columns=["row", "reason"])
        yield from _unlike(run, file, tables.documents(plan.id_type, plan.label_type), planned)
        usable = documents.filter(pc.is_null(documents["reason"]))["row"].combine_chunks()
        for model in plan.models:
            for made, schema in _SCHEMAS.items():
                file = f"{model}/{made}/{name}"
                if file not in known:
                    rows = usable if made in ("attention", "scores") else None
                    yield from _unlike(run, file, schema(plan), rows)
                    yield from _of_another(run, file, model)


def _measured_of_another(run: Path, plan: Plan, known: set[str]) -> Iterator[Problem]:
    """What `validate` left of models as they are no more."""
    for model in plan.models:
        file = f"{model}/{faithfulness.FILE}"
        if (run / file).is_file() and file not in known and not (
            faithfulness.is_current(shards.read(run / file), plan, model)
        ):
            yield Problem(file, "is not of this model and plan; clsight validate measures again",
                          "other")


_SCHEMAS: dict[str, Callable[[Plan], pa.Schema]] = {
    "attention": lambda plan: tables.attention(plan.label_type, plan.piece_scores),
    "scores": lambda plan: tables.scores(plan.scores),
    "heads": lambda _: tables.heads(),
    "agreement": lambda _: tables.agreement(),
    "sums": lambda plan: tables.sums(plan.scores),
}


def _unlike(
    run: Path, file: str, schema: pa.Schema, rows: pa.Array | None
) -> Iterator[Problem]:
    there = pq.read_schema(run / file)
    if there.names != schema.names or there.types != schema.types:
        yield Problem(file, "has other columns than planned", "other")
    elif rows is not None:
        found = pq.read_table(run / file, columns=["row"])["row"].combine_chunks()
        if not found.equals(rows):
            yield Problem(file, f"holds {len(found)} documents that are not the {len(rows)} that "
                          "were planned", "other")


def _of_another(run: Path, file: str, model: str) -> Iterator[Problem]:
    """Sums say nothing of their documents, but which shard they were, and whose."""
    path = run / file
    if (was := shards.was(path)) != path.name:
        yield Problem(file, f"is {was or 'another file'} under another name", "other")
    elif set(pq.read_table(path, columns=["model"])["model"].unique().to_pylist()) - {model}:
        yield Problem(file, "is of another model", "other")


def _database(run: Path, plan: Plan, incomplete: bool) -> list[Problem]:
    """What is wrong with the relations; checks are asked where all else is well."""
    name = tables.DATABASE
    if not (run / name).is_file():
        return [Problem(name, "is missing", "missing")]
    try:
        if not build.is_built(run, plan, Options(**plan.options)):
            return [Problem(name, "is damaged, or was made by another plan or from other options",
                            "damaged")]
        with database.connect(run) as connection:
            _read_through(connection)
            failed = {} if incomplete else database.failed_checks(connection)
    except (duckdb.Error, ClsightError) as error:
        return [Problem(name, said(error), "damaged")]
    return [Problem(f"check {check}", f"{count} rows; clsight query {run} {check} lists them",
                    "check") for check, count in failed.items()]


def _read_through(connection: duckdb.DuckDBPyConnection) -> None:
    """Read all that is stored, of which DuckDB checks each block as it reads it.

    Raises:
        duckdb.Error: a block is damaged.
    """
    stored = connection.sql(
        "SELECT table_name FROM duckdb_tables() WHERE NOT temporary").fetchall()
    for (table,) in stored:
        name = table.replace('"', '""')
        connection.sql(f'SELECT bit_xor(hash(t)) FROM "{name}" AS t').fetchall()
