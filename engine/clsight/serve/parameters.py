"""Parameters of relations and queries, typed: by the headers of SQL files, and by the run."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import Query
from pydantic import BaseModel, ConfigDict, create_model

from clsight.plan import Plan
from clsight.serve.pages import FORMATS

ROWS = 1000
"""Of a page, where none is asked for."""
MOST_ROWS = max(form.most_rows for form in FORMATS.values())
LONGEST = 1000
"""Characters of a text that is asked for."""
ALL = "(all)"
"""How queries call all models."""
INT64 = (1 << 63) - 1

Kind = Any
"""What pydantic takes as the type of a field."""
Text = Annotated[str, Query(max_length=LONGEST)]
Count = Annotated[int, Query(ge=0, le=1_000_000)]
Whole = Annotated[int, Query(ge=-INT64 - 1, le=INT64)]
Number = Annotated[float, Query(allow_inf_nan=False)]


def model(name: str, fields: Mapping[str, tuple[Kind, Any, str]]) -> type[BaseModel]:
    """A model of parameters, name -> (type, default, description), that refuses all others."""
    made: dict[str, Any] = {
        field: (kind, Query(default=default, description=description or None))
        for field, (kind, default, description) in fields.items()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid"), **made)


def page() -> dict[str, tuple[Kind, Any, str]]:
    """What all questions have: page and format."""
    return {
        "limit": (Annotated[int, Query(ge=1, le=MOST_ROWS)], ROWS, "rows of the page"),
        "offset": (Annotated[int, Query(ge=0, le=INT64 // 2)], 0, "rows before the page"),
        "format": (Literal[tuple(FORMATS)] | None, None, "else what the Accept header asks for"),
    }


def column(name: str, kind: pa.DataType, plan: Plan) -> Kind:
    """The type of a filter on a column."""
    if name in _CHOICES:
        return choice(_CHOICES[name](plan))
    if pa.types.is_boolean(kind):
        return bool
    return Whole if pa.types.is_integer(kind) else Text


def declared(name: str, default: str | None, text: str, plan: Plan) -> tuple[Kind, Any, str]:
    """The type, default and description of a parameter that a query's header declares.

    A default is a number, true or false, or a word. The description of a word may name all choices
    ("over: more in errors; under: less"); models and scores are those of the run.
    """
    if default is None:
        return Text, ..., text
    if name in _CHOICES:
        known = _CHOICES[name](plan)
        return choice(known if default in known else [default, *known]), default, text
    if default in ("true", "false"):
        return bool, default == "true", text
    if default.isdecimal():
        return Count, int(default), text
    if re.fullmatch(r"\d*\.\d+", default):
        return Number, float(default), text
    choices = re.findall(r"(?:^|; )(\w+): ", text)
    return choice(choices) if default in choices else Text, default, text


def choice(values: Iterable[Any]) -> Kind:
    """One of the values, spelled as text."""
    return Literal[tuple(dict.fromkeys(map(str, values)))]


def as_text(value: Any) -> str:
    """A value as the SQL's parameters take it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_CHOICES: dict[str, Callable[[Plan], list[Any]]] = {
    "model": lambda plan: list(plan.models),
    "other": lambda plan: list(plan.models),
    "score": lambda plan: list(plan.scores),
    "label": lambda plan: plan.labels,
    "predicted": lambda plan: plan.labels,
}
