"""A run over HTTP, read-only: relations, queries and the dashboard.

    request -> access (Host, token) -> site (is the run still the same?) -> routes -> answers

A run that is worked on while it is served is opened anew; what was half answered then is thrown
away. FastAPI and uvicorn are an extra, and are loaded when serving begins.
"""

import ipaddress
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import click

from clsight import plan as plans
from clsight.errors import ClsightError, UsageError, printable

LONGEST_END = 5
"""Seconds that requests get to end when the server is stopped."""
SHORTEST_TOKEN = 16


def serve(
    run: Path, host: str = "127.0.0.1", port: int = 8000, token: str | None = None,
    allow_sql: bool = False, say: Callable[[dict[str, str | None]], None] | None = None,
) -> None:
    """Serve a run until SIGTERM or SIGINT; says its address on stderr.

    Args:
        run: the run folder; it may be incomplete, and is answered from once it is complete.
        host: name or address to listen on; others than this machine's own need a token.
        port: 0 for any that is free.
        token: what requests must know; made up, and said once, where a host needs one.
        allow_sql: answer POST /api/sql, each question in a process with limits.
        say: called with url and token, for programs, once requests are heard.

    Raises:
        UsageError: no run, an unusable token, or FastAPI and uvicorn are not installed.
        ClsightError: the address cannot be had.
    """
    plans.load(run)
    local = is_local(host)
    if token is not None:
        refuse_weak(token)
    token = token or (None if local else secrets.token_urlsafe(32))
    try:
        import uvicorn

        from clsight.serve.access import Access
        from clsight.serve.site import Site
    except ModuleNotFoundError as error:
        raise UsageError(f"clsight serve needs {error.name}, which is not installed: "
                         'pip install "clsight[serve]"') from error
    # Last, for a line of a log would otherwise come between.
    listening = listen(host, port)
    known = frozenset({host.lower(), "localhost", "127.0.0.1", "::1"}) if local else None
    app = Access(Site(run, allow_sql, bool(token)), hosts=known, token=token)
    server = uvicorn.Server(uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=LONGEST_END))
    url = _url(host, listening.getsockname()[1])
    if say:
        say({"url": url, "token": token})
    _say(run, url, token)
    # uvicorn ends at these as well, but then puts back what it finds here and raises them again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listening])


def is_local(host: str) -> bool:
    """True where only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def refuse_weak(token: str) -> None:
    """Raise `UsageError` where a token is short, or does not fit into a header."""
    if len(token) < SHORTEST_TOKEN or not set(token) <= _TOKEN:
        raise UsageError(f"a token needs {SHORTEST_TOKEN} characters or more, of letters, digits, "
                         "'-', '_', '.', '~'; without --token one is made up where it is needed")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ClsightError: the port is taken, or the host is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise ClsightError(f"cannot listen on {host}, port {port} ({error}); give another with "
                           "--port, or 0 for one that is free") from error
    # Else the head of an answer waits 40 ms for the client's word before its body follows.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _say(run: Path, url: str, token: str | None) -> None:
    address = url + (f"?token={token}" if token else "")
    click.echo(printable(f"clsight: {run} is at {address} (Ctrl-C ends it)"), err=True)
    sys.stderr.flush()


_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~")
