"""Who may ask, and what browsers may do with the answer: Host, token, headers, size of a body."""

import hashlib
import hmac
import sys
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clsight.errors import printable, said

MOST_BODY = 1 << 20
"""Bytes of a request's body."""
OPEN = ("/healthz",)
"""Paths that need no token."""
HEADERS = {
    # Charts compile expressions, and the page has its scripts in it, so that a file of it works.
    "Content-Security-Policy":
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Access:
    """An ASGI application behind a door.

    A page of a stranger may let its own name point to this machine, and then read what is served
    here (DNS rebinding); its requests still carry that name as Host, and are refused.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, token: str | None) -> None:
        """Guard `app`; None for hosts: all, for token: none is needed."""
        self._app, self._hosts, self._token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        headers, begun = Headers(scope=scope), False

        async def sent(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        # The server leaves out the body of an answer to HEAD.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        answer = self._refused(scope, headers) or self._let_in(scope) or self._app
        try:
            await answer(asked, _at_most(receive, MOST_BODY), sent)
        except Exception as error:
            print(f"clsight: {printable(scope['path'])}: {type(error).__name__}: "
                  f"{printable(said(error))}", file=sys.stderr)
            if not begun:
                await _fault(error)(scope, receive, sent)

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return _answer(403, "this server answers to its own names alone: "
                                f"{', '.join(sorted(self._hosts))}")
        if self._token is None or scope["path"] in OPEN or self._is_token(_bearer(headers)):
            return None
        if self._is_token(_cookie(headers, self._cookie)):
            return None
        if scope["path"] == "/" and self._is_token(_in_query(scope)):
            return None
        return _answer(401, "a token is needed: send it as Authorization: Bearer TOKEN, or open "
                            "the address with ?token=TOKEN in a browser",
                       {"WWW-Authenticate": "Bearer"})

    def _let_in(self, scope: Scope) -> Response | None:
        """The browser that came with the token keeps it as a cookie, and not in its address."""
        if self._token is None or scope["path"] != "/" or not self._is_token(_in_query(scope)):
            return None
        rest = parse_qs(scope["query_string"].decode("latin-1"))
        del rest["token"]
        answer = RedirectResponse("/" + (f"?{urlencode(rest, doseq=True)}" if rest else ""), 303,
                                  headers={"Cache-Control": "no-store"})
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    @property
    def _cookie(self) -> str:
        """Browsers do not tell ports apart: so that two servers of a machine have a cookie each."""
        return f"clsight-{hashlib.sha256((self._token or '').encode()).hexdigest()[:8]}"


def _at_most(receive: Receive, most: int) -> Receive:
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise HTTPException(413, f"the body has more than {most:,} bytes; send less")
        return message

    return counted


def _host(header: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookie(headers: Mapping[str, str], name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return str(found.value) if found else ""


def _in_query(scope: Scope) -> str:
    query: bytes = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("token", [""])[-1]


def _fault(error: Exception) -> Response:
    return _answer(500, f"unexpected {type(error).__name__}; a fault of clsight, please report it")


def _answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"detail": sentence}, status, headers)
