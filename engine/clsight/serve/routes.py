"""The addresses of a complete run: one for each relation, query and check, made from SQL files."""

from typing import Annotated, Any, Literal

import duckdb
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from pydantic_core import to_json

from clsight.serve import free_sql, parameters
from clsight.serve.asking import Answer, Opened
from clsight.serve.pages import FORMATS
from clsight.serve.questions import KINDS, Question, questions
from clsight.serve.replies import PROBLEM, chosen, reply

JSON = FORMATS["json"].media_type
MOST_DOCUMENTS = 200
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Rows; X-More says whether there are more, and Link where.",
          "content": {form.media_type.partition(";")[0]: {} for form in FORMATS.values()}},
    304: {"description": "The client has it (If-None-Match)."},
    **dict.fromkeys((406, 422, 503, 504), PROBLEM),
}


def bearer() -> list[Any]:
    """Says in the description that a token is needed; `Access` is what asks for it."""
    return [Depends(HTTPBearer(auto_error=False))]


def add(app: FastAPI, opened: Opened, allow_sql: bool) -> None:
    """All addresses that need the run's database.

    Raises:
        ClsightError: a relation cannot be read.
    """
    with opened.connection.cursor() as cursor:
        asked = questions(cursor, opened.plan)
    for kind in KINDS:
        own = [question for question in asked if question.kind == kind]
        _add_catalogue(app, opened, kind, own)
        for question in own:
            _add_question(app, opened, question)
        _add_unknown(app, kind, [question.name for question in own])
    _add_browse(app, opened)
    _add_page(app, opened)
    free_sql.add(app, opened.run, allow_sql)


def _add_catalogue(app: FastAPI, opened: Opened, kind: str, asked: list[Question]) -> None:
    rows = [{
        "name": question.name, "purpose": question.purpose, "url": f"/api/{kind}/{question.name}",
        "parameters": list(question.parameters.model_fields),
        "columns": [{"name": field.name, "type": str(field.type)} for field in question.columns],
    } for question in asked]
    answer = Answer(to_json(rows), JSON)

    async def catalogue(request: Request) -> Response:
        return await reply(request, opened, (), lambda _: answer)

    app.add_api_route(f"/api/{kind}", catalogue, tags=["catalogue"], response_class=Response,
                      name=kind, summary=f"all {kind}, with purpose, parameters and columns",
                      responses={200: {"content": {JSON: {}}}, 503: PROBLEM})


def _add_question(app: FastAPI, opened: Opened, question: Question) -> None:
    async def ask(request: Request, given: BaseModel) -> Response:
        form = chosen(given.model_dump()["format"], request.headers)
        values = question.values(given)
        limit, offset = question.page(given, form)
        if limit > FORMATS[form].most_rows:
            raise HTTPException(422, f"limit: a page has at most {FORMATS[form].most_rows:,} rows "
                                     f"as {form}; arrow and parquet have more")
        return await reply(
            request, opened, (values, limit, offset, form),
            lambda cursor: question.answer(cursor, values, limit, offset, form),
            None if form == "json" else f"{question.name}.{form}", FORMATS[form].is_text)

    ask.__annotations__["given"] = Annotated[question.parameters, Query()]
    app.add_api_route(f"/api/{question.kind}/{question.name}", ask, tags=[question.kind],
                      summary=question.purpose, name=question.name, response_class=Response,
                      responses=ANSWERS)


def _add_unknown(app: FastAPI, kind: str, names: list[str]) -> None:
    @app.get(f"/api/{kind}/{{name}}", include_in_schema=False)
    async def unknown(name: str) -> Response:
        raise HTTPException(404, f"{name!r} is none of the {kind}; there are {', '.join(names)}")


def _add_browse(app: FastAPI, opened: Opened) -> None:
    """The documents that the dashboard shows."""
    plan = opened.plan
    label, model = (parameters.choice(values) for values in (plan.labels, plan.models))
    filters = parameters.model("browse", {
        "model": (model | None, None, "whose errors and predictions count; else any model's"),
        "form": (parameters.Text | None, None, "a word that documents hold, or two side by side"),
        "label": (label | None, None, "the gold label"),
        "predicted": (label | None, None, "what the model says"),
        "outcome": (Literal["all", "errors", "correct", "disagree"], "all", ""),
        "limit": (Annotated[int, Query(ge=1, le=MOST_DOCUMENTS)], 10, "documents of the page"),
        "offset": (Annotated[int, Query(ge=0, le=parameters.INT64)], 0, "documents before it"),
    })

    async def browse(request: Request, given: BaseModel) -> Response:
        asked = given.model_dump()

        def work(cursor: duckdb.DuckDBPyConnection) -> Answer:
            from clsight.report.documents import browse

            found = browse(cursor, opened.plan, **asked)
            return Answer(to_json(found, inf_nan_mode="strings"), JSON)

        return await reply(request, opened, (asked,), work)

    browse.__annotations__["given"] = Annotated[filters, Query()]
    app.add_api_route("/api/browse", browse, tags=["run"], response_class=Response,
                      summary="documents with their words, predictions and scores",
                      responses={200: {"content": {JSON: {}}}, 304: ANSWERS[304],
                                 **dict.fromkeys((422, 503, 504), PROBLEM)})


def _add_page(app: FastAPI, opened: Opened) -> None:
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        def work(_: Any) -> Answer:
            from clsight.report import page

            return Answer(page(opened.run, live=True).encode(), "text/html; charset=utf-8")

        return await reply(request, opened, (), work)
