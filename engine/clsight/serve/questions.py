"""What can be asked by name: a relation with filters, a query with its parameters, or a check."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import BaseModel

from clsight import database
from clsight.errors import ClsightError
from clsight.plan import Plan
from clsight.serve import parameters
from clsight.serve.asking import Answer
from clsight.serve.pages import BATCH, FORMATS, encoded, first_rows

KINDS = {"relations": "views", "queries": "queries", "checks": "checks"}
"""Of questions -> of SQL files."""
FILTERS = ("model", "other", "score", "kind", "form", "slice", "reference", "document_id", "row",
           "label", "predicted", "correct")
"""Columns that relations can be filtered by: what names a row, and what a prediction is."""


@dataclass(frozen=True)
class Question:
    """One relation, query or check of a run."""

    kind: str
    name: str
    file: str
    """The text of its SQL file."""
    columns: pa.Schema
    own: tuple[str, ...]
    """Parameters that go into the SQL; the others are those of the page."""
    parameters: type[BaseModel]

    @property
    def purpose(self) -> str:
        """What it is, in one sentence."""
        return database.purpose(self.file)

    def values(self, given: BaseModel) -> dict[str, Any]:
        """What is given for the SQL."""
        found = given.model_dump(include=set(self.own), exclude_none=True)
        return {name: found[name] for name in self.own if name in found}

    def page(self, given: BaseModel, form: str) -> tuple[int, int]:
        """Rows of the page, and rows before it.

        A query with a limit of its own has pages as long as they may be.
        """
        asked = given.model_dump(include={"limit", "offset"})
        limit = FORMATS[form].most_rows if "limit" in self.own else asked["limit"]
        return limit, asked["offset"]

    def answer(
        self, cursor: duckdb.DuckDBPyConnection, values: Mapping[str, Any], limit: int, offset: int,
        form: str,
    ) -> Answer:
        """One page.

        Raises:
            ClsightError: DuckDB cannot make it.
        """
        sql = f"FROM ({self._sql(values)}\n){self._order()} LIMIT {limit + 1} OFFSET {offset}"
        texts = {name: parameters.as_text(value) for name, value in values.items()}
        table, more = first_rows(database.query(cursor, sql, texts, BATCH), limit)
        return Answer(encoded(table, form), FORMATS[form].media_type, table.num_rows, more)

    def _sql(self, values: Mapping[str, Any]) -> str:
        if self.kind != "relations":
            return self.file.rstrip().rstrip(";")
        types = {name: _SQL_TYPES.get(str(self.columns.field(name).type), "VARCHAR")
                 for name in values}
        conditions = " AND ".join(f'"{name}"::{types[name]} = ${name}::{types[name]}'
                                  for name in values)
        return f'FROM "{self.name}"' + (f" WHERE {conditions}" if conditions else "")

    def _order(self) -> str:
        """Pages need an order, which not all have; by all columns, only equal rows are tied."""
        return "" if is_ordered(self.file) else " ORDER BY ALL"


_SQL_TYPES = {"int64": "BIGINT", "int32": "INTEGER", "bool": "BOOLEAN"}


def is_ordered(sql: str) -> bool:
    """True where a file's rows come in an order of their own."""
    bare, n = re.sub(r"--.*", "", sql), 1
    while n:
        bare, n = re.subn(r"\([^()]*\)", "", bare)
    return "ORDER BY" in bare


def questions(cursor: duckdb.DuckDBPyConnection, plan: Plan) -> list[Question]:
    """All that can be asked of a run; one that an earlier version made may lack relations."""
    found = []
    for kind, folder in KINDS.items():
        for name, sql in database.sql_files(folder).items():
            try:
                found.append(_question(cursor, plan, kind, name, sql))
            except ClsightError as error:
                if not isinstance(error.__cause__, _LACKING):
                    raise
    return found


_LACKING = (duckdb.CatalogException, duckdb.BinderException)


def _question(
    cursor: duckdb.DuckDBPyConnection, plan: Plan, kind: str, name: str, file: str
) -> Question:
    declared = database.described(file)
    fields = {key: parameters.declared(key, default, text, plan)
              for key, (default, text) in declared.items()}
    sql = f'FROM "{name}"' if kind == "relations" else file
    example = {key: default or "the" for key, (default, _) in declared.items()}
    columns = database.query(cursor, f"FROM ({sql.rstrip().rstrip(';')}\n) LIMIT 0",
                             example).schema
    if kind == "relations":
        fields = {column: (parameters.column(column, columns.field(column).type, plan) | None, None,
                           f"rows with this {column} alone")
                  for column in FILTERS if column in columns.names}
    return Question(kind, name, file, columns, tuple(fields),
                    parameters.model(name, {**parameters.page(), **fields}))
