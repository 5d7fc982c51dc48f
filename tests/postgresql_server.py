"""A PostgreSQL server of one's own, in a temporary folder, reached by a socket in it."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A running server."""

    programs: Path
    socket: Path

    @property
    def address(self):
        """What to connect to."""
        return f"postgresql://clsight@/postgres?host={self.socket}"

    def sql(self, statement):
        """The rows of a statement as psql prints them, a line each."""
        command = [self.programs / "psql", self.address, "-XqAt", "-v", "ON_ERROR_STOP=1"]
        answer = subprocess.run([*command, "-c", statement], check=True, stdout=subprocess.PIPE)
        return answer.stdout.decode().removesuffix("\n").split("\n") if answer.stdout else []

    def rows(self, query):
        """The rows of a query as objects, made into JSON by the server."""
        return [json.loads(line) for line in self.sql(f"SELECT to_json(t) FROM ({query}) AS t")]


def programs():
    """The folder of initdb and postgres, which Debian keeps off the PATH; None without a server."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    paths = [Path(found).resolve()] if found else debian[-1:]
    return paths[0].parent if paths else None


@contextmanager
def server(durable=False):
    """Start a server that trusts everybody who can reach its socket; stop it at the end.

    Where it is durable it waits for the disk at every commit, as servers usually do.
    """
    folder, place = programs(), Path(tempfile.mkdtemp(prefix="clsight-"))
    # It refuses to run as root.
    other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    if other:
        shutil.chown(place, "nobody", "nogroup")

    def call(program, *arguments):
        subprocess.run([folder / program, "-D", place / "data", *arguments], check=True, cwd=place,
                       stdout=subprocess.DEVNULL, **other)

    call("initdb", "--username=clsight", "--auth=trust", "--encoding=UTF8", "--no-sync")
    call("pg_ctl", "start", "-w", "-l", place / "log",
         "-o", f"-k {place} -c listen_addresses='' -c fsync={'on' if durable else 'off'}")
    try:
        yield Server(folder, place)
    finally:
        call("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(place)
