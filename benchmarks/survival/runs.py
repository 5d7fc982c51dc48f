"""Runs that are disturbed: what they are of, how they are started, and whether two are the same."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsight import database, demo
from clsight.errors import ClsightError

SHARED = Path(__file__).parents[3] / "shared"
"""Real data and models beside the project."""
EXACT = ("documents", "bad_documents", "predictions", "words", "tested_documents", "strata",
         "head_weights")
"""Relations whose every bit must be the same; all others hold sums, which threads add up in any
order."""
RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""How far floats of the other relations may lie apart."""
REAL = SHARED / "data" / "rotten_tomatoes" / "unseen.parquet"


@dataclass(frozen=True)
class Case:
    """A dataset, models, and how they are run; batches do not hang on a calibration."""

    name: str
    data: Path
    models: dict[str, str]
    shard_size: int = 512
    options: tuple[str, ...] = ()

    def arguments(self, output):
        """Those of the command line."""
        models = [f"--model={name}={path}" for name, path in self.models.items()]
        return ["run", str(self.data), "--text", "text", "--label", "label", *models,
                "--shard-size", str(self.shard_size), "--dtype", "float32", "--device", "cpu",
                "--tokens-per-batch", "8192", *self.options, "-o", str(output)]

    def command(self, output):
        """The same in a process of its own."""
        return [sys.executable, "-m", "clsight.cli", *self.arguments(output)]


def generated(folder, documents, **options):
    """The demo's reviews and classifiers."""
    data = demo.write_reviews(folder / f"generated-{documents}", documents, 5)
    return Case("generated", data, demo.models(), **options)


def real(names=("bert-rt", "minilm-rt", "roberta-rt"), data=REAL, **options):
    """The real reviews, and the classifiers that were trained on others of them."""
    models = {name.removesuffix("-rt"): str(SHARED / "models" / name) for name in names}
    return Case("real", data, models, **options)


@dataclass(frozen=True)
class Finished:
    """What a finished run holds."""

    relations: dict[str, pa.Table]
    """Each in one order, which no float decides."""
    checks: dict[str, int]
    """The run's own checks that fail."""
    files: frozenset[str]

    @classmethod
    def read(cls, run):
        """From its folder."""
        files = frozenset(path.relative_to(run).as_posix() for path in run.rglob("*")
                          if not path.is_dir())
        with database.connect(run) as connection:
            relations = {name: _ordered(connection, name) for name in database.sql_files("views")}
            return cls(relations, database.failed_checks(connection), files)

    def differences(self, run):
        """What another run, a folder, has otherwise; one line each."""
        try:
            other = Finished.read(run)
        except (ClsightError, OSError, database.duckdb.Error) as error:
            return [f"cannot be read: {error}"]
        return [
            *(f"{name} has not the same rows: {why}" for name, table in self.relations.items()
              if (why := _unlike(table, other.relations[name], name in EXACT))),
            *(f"check {name}: {count} rows" for name, count in other.checks.items()),
            *(f"{file} is missing" for file in sorted(self.files - other.files)),
            *(f"{file} does not belong" for file in sorted(other.files - self.files)),
        ]

    def lost_and_doubled(self, run):
        """Predictions that another run, a folder, has not, and those that it has too often."""
        with database.connect(run) as connection:
            mine, other = (_counted(table) for table in (
                self.relations["predictions"], _ordered(connection, "predictions")))
        return (mine - other).total(), (other - mine).total()


def _counted(predictions):
    return Counter(zip(predictions["model"].to_pylist(), predictions["document_id"].to_pylist(),
                       strict=True))


def _ordered(connection, name):
    schema = connection.sql(f'FROM "{name}" LIMIT 0').to_arrow_table().schema
    keys = [f'"{field.name}"' for field in schema
            if not pa.types.is_floating(field.type) and not pa.types.is_list(field.type)]
    return connection.sql(f'FROM "{name}" ORDER BY {", ".join(keys)}').to_arrow_table()


def _unlike(one, other, exact):
    """What is not the same in two tables of the same order; "" where nothing is."""
    if len(one) != len(other) or one.schema != other.schema:
        return f"{len(one)} and {len(other)}"
    columns = [name for name in one.column_names
               if not _same(one[name].combine_chunks(), other[name].combine_chunks(), exact)]
    return ", ".join(columns)


def _same(one, other, exact):
    if pa.types.is_list(one.type):
        return (pc.list_value_length(one).equals(pc.list_value_length(other))
                and _same(one.flatten(), other.flatten(), exact))
    if not pa.types.is_floating(one.type):
        return one.equals(other)
    if not one.is_null().equals(other.is_null()):
        return False
    one, other = (values.drop_null().to_numpy() for values in (one, other))
    if exact:
        return one.tobytes() == other.tobytes()
    return np.allclose(other, one, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
