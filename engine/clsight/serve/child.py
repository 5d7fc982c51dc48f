"""The process that answers one statement of a stranger: `python -I -m clsight.serve.child`.

Reads {"run", "sql", "format", "most_rows"} as JSON; writes a line of JSON that says what follows,
and the answer. Limits are set before anything else is read or loaded.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

GIB = 1 << 30
MEMORY = "512MB"
"""For DuckDB, which then says so; the address space is the limit for all the rest."""
LIMITS = {
    resource.RLIMIT_AS: (3 * GIB, 3 * GIB),
    resource.RLIMIT_CPU: (20, 21),  # seconds; at the first a signal that says why
    # Nothing can be written to any file: neither COPY … TO nor a temporary file.
    resource.RLIMIT_FSIZE: (0, 0),
    resource.RLIMIT_CORE: (0, 0),
}
THREADS = 2


def main() -> None:
    """Answer the statement on stdin."""
    limit()
    asked = json.load(sys.stdin)
    said, content = answered(**asked)
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n" + content)
    sys.stdout.buffer.flush()


def limit() -> None:
    """Set the limits of this process, for good."""
    for of, most in LIMITS.items():
        resource.setrlimit(of, most)


def answered(run: str, sql: str, format: str, most_rows: int) -> tuple[dict[str, Any], bytes]:
    """What is said of the answer, and the answer."""
    import duckdb
    import pyarrow as pa

    from clsight import database
    from clsight.errors import ClsightError, said
    from clsight.serve.pages import BATCH, MOST_BYTES, encoded, first_rows

    limits = {"memory_limit": MEMORY, "temp_directory": "", "threads": str(THREADS)}
    try:
        with database.connect(Path(run), limits) as connection:
            reader = database.query(connection, sql, {}, BATCH)
            table, more = first_rows(reader, most_rows)
            # Looked at before as well: writing may take several times as much.
            content = encoded(table, format) if table.nbytes <= MOST_BYTES else b""
    except (MemoryError, pa.ArrowMemoryError):
        return _refused(_TOO_MUCH, True)
    except ClsightError as error:
        if isinstance(error.__cause__, duckdb.OutOfMemoryException):
            return _refused(_TOO_MUCH, True)
        return _refused(said(error), False)
    except Exception as error:  # values that a format has no place for
        return _refused(f"the answer cannot be written as {format}: {said(error)}", False)
    if not content or len(content) > MOST_BYTES:
        return _refused(f"the answer has more than {MOST_BYTES >> 20} MiB; ask for less", True)
    return {"rows": table.num_rows, "more": more}, content


_TOO_MUCH = f"the statement needs more memory than it may have ({MEMORY}); ask for less"


def _refused(sentence: str, at_limit: bool) -> tuple[dict[str, Any], bytes]:
    return {"refused": sentence, "at_limit": at_limit}, b""


if __name__ == "__main__":
    main()
