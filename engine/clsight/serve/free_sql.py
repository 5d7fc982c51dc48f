"""POST /api/sql: one SELECT statement of a stranger, in a process of its own, with limits.

What the database's own lock leaves open (COPY … TO within the run, memory, time, a fault of the
database itself) ends there: see `child`. It is a process of the same user, without files, network
or environment of its own, but no sandbox of the operating system: it can open what that user can.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from clsight import database
from clsight.serve.pages import FORMATS, MOST_BYTES
from clsight.serve.replies import PROBLEM

SECONDS = 10.0
"""By the clock, from the start of the process (a third of a second)."""
AT_ONCE = 2
MOST_WAITING = 16
COMMAND = (sys.executable, "-I", "-m", "clsight.serve.child")
"""-I: neither the working folder nor the environment decide what is imported."""
HEADERS = {"Cache-Control": "no-store"}


class Statement(BaseModel):
    """One SELECT statement, and how its rows are sent."""

    model_config = ConfigDict(extra="forbid")
    sql: Annotated[str, Field(min_length=1, max_length=100_000)]
    format: Literal["json", "csv", "arrow", "parquet"] = "json"


def add(app: FastAPI, run: Path, allowed: bool) -> None:
    """The address; where free SQL is not allowed, it says so."""
    slots = asyncio.Semaphore(AT_ONCE)
    waiting = 0

    @app.post("/api/sql", tags=["sql"], response_class=Response, include_in_schema=allowed,
              responses={200: {"content": {f.media_type.partition(";")[0]: {}
                                           for f in FORMATS.values()}},
                         **dict.fromkeys((400, 413, 422, 503), PROBLEM)})
    async def sql(statement: Annotated[Statement, Body()]) -> Response:
        """Answer one SELECT statement; X-More says whether rows were left out."""
        nonlocal waiting
        if not allowed:
            raise HTTPException(403, "free SQL is off; clsight serve --allow-sql turns it on")
        if waiting >= MOST_WAITING:
            raise HTTPException(503, "too many statements wait already; ask later",
                                {"Retry-After": "2"})
        waiting += 1
        try:
            async with slots:
                said, content = await answered(run, statement)
        finally:
            waiting -= 1
        return _response(statement.format, said, content)


async def answered(run: Path, statement: Statement) -> tuple[dict[str, Any], bytes]:
    """What the process says of its answer, and the answer.

    Raises:
        HTTPException: 422, it was ended at one of its limits.
    """
    await asyncio.to_thread(database.fetch_sources, run, statement.sql)
    asked = {"run": str(run.resolve()), "sql": statement.sql, "format": statement.format,
             "most_rows": FORMATS[statement.format].most_rows}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, cwd="/", env={}, start_new_session=True, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        output = await asyncio.wait_for(_exchange(process, json.dumps(asked).encode()), SECONDS)
    except TimeoutError:
        raise HTTPException(422, f"the statement took longer than {SECONDS:g} seconds and was "
                                 "ended") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = await process.wait()
    head, newline, content = output.partition(b"\n")
    if not newline:
        raise HTTPException(422, _ended(code))
    return json.loads(head), content


async def _exchange(process: asyncio.subprocess.Process, asked: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):
        process.stdin.write(asked)
        process.stdin.close()
    output = bytearray()
    while block := await process.stdout.read(1 << 16):
        output += block
        if len(output) > MOST_BYTES + (1 << 16):
            raise HTTPException(422, f"the answer has more than {MOST_BYTES >> 20} MiB")
    return bytes(output)


def _ended(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "the statement needed more processor time than it may have, and was ended"
    return "the statement was ended: it needed more memory than it may have, or broke the database"


def _response(form: str, said: Mapping[str, Any], content: bytes) -> Response:
    if "refused" in said:
        raise HTTPException(422 if said["at_limit"] else 400, said["refused"])
    headers = {**HEADERS, "X-Rows": str(said["rows"]), "X-More": str(said["more"]).lower()}
    if form != "json":
        headers["Content-Disposition"] = f'attachment; filename="answer.{form}"'
    return Response(content, media_type=FORMATS[form].media_type, headers=headers)
