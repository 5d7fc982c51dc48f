"""Answers as HTTP has them: formats by wish, validators, compression, links, downloads."""

import dataclasses
import gzip
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel

from clsight.serve.asking import Answer, Opened, Work
from clsight.serve.pages import FORMATS

WORTH_COMPRESSING = 4096
"""Bytes."""
HEADERS = {
    # Kept by the browser alone, and asked for again each time: a run may go on.
    "Cache-Control": "private, no-cache",
    "Vary": "Accept, Accept-Encoding",
}


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    detail: str


PROBLEM: dict[str, Any] = {"model": Problem, "description": "What is wrong, in one sentence."}


async def reply(
    request: Request, opened: Opened, asked: tuple[object, ...], work: Work[Answer],
    name: str | None = None, compressed: bool = True,
) -> Response:
    """The answer to a request, or 304 where the client has it.

    Args:
        request: whose headers say what the client has and takes.
        opened: the run.
        asked: all that the answer depends on, beside the run.
        work: makes the answer.
        name: of the file, for those who save it.
        compressed: compress it for clients that take that.

    Raises:
        HTTPException: see `Opened.ask`.
    """
    shrunk = compressed and "gzip" in request.headers.get("accept-encoding", "")
    etag = opened.etag(request.url.path, asked, shrunk)
    headers = {**HEADERS, "ETag": etag}
    if _has(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    answer = await opened.answer(etag, (lambda cursor: _shrunk(work(cursor))) if shrunk else work)
    headers |= _about(answer, request, name)
    return Response(answer.content, media_type=answer.media_type, headers=headers)


def _about(answer: Answer, request: Request, name: str | None) -> dict[str, str]:
    headers = {"Content-Encoding": answer.encoding} if answer.encoding else {}
    if answer.rows is not None:
        headers |= {"X-Rows": str(answer.rows), "X-More": str(answer.more).lower()}
    if name is not None:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    if answer.more:
        headers["Link"] = f'<{_next(request, answer.rows or 0)}>; rel="next"'
    return headers


def _next(request: Request, rows: int) -> str:
    query: Mapping[str, str] = dict(request.query_params)
    offset = int(query.get("offset", "0")) + rows
    return f"{request.url.path}?{urlencode({**query, 'offset': offset})}"


def _has(if_none_match: str, etag: str) -> bool:
    """True where the client has the answer (RFC 9110, 13.1.2: weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]


def _shrunk(answer: Answer) -> Answer:
    if len(answer.content) < WORTH_COMPRESSING:
        return answer
    content = gzip.compress(answer.content, compresslevel=1, mtime=0)
    return dataclasses.replace(answer, content=content, encoding="gzip")


def chosen(form: str | None, headers: Mapping[str, str]) -> str:
    """The format that is named, else the one that Accept likes best; JSON where it has no wish.

    Raises:
        HTTPException: Accept allows none of them.
    """
    if form is not None:
        return form
    likings = _likings(headers.get("accept", "*/*"))
    offers = {name: offer.media_type.partition(";")[0] for name, offer in FORMATS.items()}
    liked = {name: _liking(media_type, likings) for name, media_type in offers.items()}
    best = max(liked, key=lambda name: liked[name])
    if not liked[best]:
        raise HTTPException(406, f"Accept allows none of {', '.join(offers.values())}; ask for one "
                                 f"of them, or with ?format={'|'.join(offers)}")
    return best


def _likings(accept: str) -> dict[str, float]:
    """Media range -> its weight in an Accept header (RFC 9110, 12.5.1)."""
    likings = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            likings[media_range] = float(weight)
        except ValueError:
            likings[media_range] = 0
    return likings


def _liking(media_type: str, likings: Mapping[str, float]) -> float:
    """Of the most particular range that the type is in."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((likings[name] for name in ranges if name in likings), 0)
