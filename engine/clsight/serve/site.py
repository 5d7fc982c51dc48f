"""The application for a run as it is now; made anew when the run's database is another one."""

import asyncio
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from clsight import __version__, status
from clsight.errors import ClsightError, UsageError
from clsight.serve import routes
from clsight.serve.asking import Identity, Opened, identity
from clsight.serve.replies import PROBLEM

RELOAD = 5
"""Seconds after which the page of an incomplete run reloads itself."""


class Site:
    """An ASGI application that follows a run: incomplete, complete, changed."""

    def __init__(self, run: Path, allow_sql: bool, needs_token: bool) -> None:
        """Nothing is opened yet."""
        self._run, self._allow_sql, self._needs_token = run, allow_sql, needs_token
        self._opened: Opened | None = None
        self._app: ASGIApp | None = None
        self._seen: Identity | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request from the run as it is now."""
        async with self._opening:
            if self._app is None or identity(self._run) != self._seen:
                self._app = await self._made()
            app = self._app
        await app(scope, receive, send)

    async def _made(self) -> FastAPI:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None
        self._seen = identity(self._run)
        app = _bare(self._run, self._needs_token)
        try:
            self._opened = await anyio.to_thread.run_sync(Opened, self._run)
            await anyio.to_thread.run_sync(routes.add, app, self._opened, self._allow_sql)
        except UsageError as error:
            _add_waiting(app, self._run, f"{error}; GET /api/status says how far it is")
        except ClsightError as error:
            _add_waiting(app, self._run, str(error))
        return app


def _bare(run: Path, needs_token: bool) -> FastAPI:
    """What there is for any run, in any state."""
    # The pages that FastAPI has for its descriptions load scripts from elsewhere.
    app = FastAPI(
        title="clsight", version=__version__, docs_url=None, redoc_url=None,
        description="Which words did each classifier look at too much when it was wrong? "
                    f"Read-only answers of the run {run.name}.",
        dependencies=routes.bearer() if needs_token else None,
        responses={401: PROBLEM} if needs_token else None,
    )
    app.add_exception_handler(RoutingError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get("/api/status", tags=["run"], responses={503: PROBLEM})
    async def how_far() -> dict[str, object]:
        """How far the run is: progress, rate, time left, retries, documents left out."""
        try:
            return status.as_dict(await anyio.to_thread.run_sync(status.status, run))
        except ClsightError as error:
            raise HTTPException(503, str(error)) from error

    @app.get("/healthz", tags=["run"])
    async def alive() -> dict[str, str]:
        """That the server answers; whether the run can be asked is in /api/status."""
        return {"status": "ok"}

    return app


def _add_waiting(app: FastAPI, run: Path, why: str) -> None:
    """Every other address says that the run is not complete, and when to come again."""
    headers = {"Retry-After": str(2 * RELOAD)}

    @app.get("/", include_in_schema=False)
    async def waiting() -> HTMLResponse:
        try:
            lines = status.lines(await anyio.to_thread.run_sync(status.status, run))
        except ClsightError as error:
            lines = [str(error)]
        shown = "".join(f"<p>{escape(line)}</p>" for line in lines)
        return HTMLResponse(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" '
            f'content="{RELOAD}"><title>clsight: not complete</title>{shown}</html>',
            503, {**headers, "Cache-Control": "no-store"})

    @app.api_route("/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    async def later(path: str) -> Response:
        raise HTTPException(503, why, headers)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RoutingError)
    path = request.url.path
    said = {"Not Found": f"there is nothing at {path}; /openapi.json says what there is",
            "Method Not Allowed": f"{request.method} is not for {path}"}
    return JSONResponse({"detail": said.get(error.detail, error.detail)}, error.status_code,
                        error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong with the parameters, in one sentence."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": "; ".join(map(_wrong, error.errors()))}, 422)


def _wrong(problem: Mapping[str, Any]) -> str:
    _, *place = problem["loc"]
    name = ".".join(map(str, place)) or "the body"
    if problem["type"] == "extra_forbidden":
        return f"there is no parameter {name}"
    if problem["type"] == "json_invalid":
        return "the body is no JSON"
    message = str(problem["msg"])
    return f"{name}: {message[:1].lower()}{message[1:]}"
