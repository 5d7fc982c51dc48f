"""A server as its users start it: a process of its own, on a free port of this machine."""

import hashlib
import re
import subprocess
import sys
from contextlib import contextmanager

import httpx


@contextmanager
def serving(run, *options, **environment):
    """A client of `clsight serve RUN`, with the process and the address it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clsight.cli", "serve", str(run), "--port", "0", *options],
        stderr=subprocess.PIPE, text=True)
    try:
        said = process.stderr.readline()
        address = re.search(r"http://\S+", said)
        assert address, said + process.stderr.read()
        port = httpx.URL(address[0]).port
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.process, client.address = process, address[0]
            yield client
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


def bytes_of(run):
    """File -> SHA-256 of all that is in a run folder."""
    return {path.relative_to(run): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.rglob("*")) if path.is_file()}


def detail(answer):
    """The sentence of an answer that says what is wrong."""
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["detail"]
    return answer.json()["detail"]
