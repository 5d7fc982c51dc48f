"""What happens in a run, as structured events: one JSON object a line in RUN/log/events.jsonl."""

import logging
from typing import Any

log = logging.getLogger("clsight")


def event(kind: str, message: str = "", level: int = logging.INFO, **fields: Any) -> None:
    """Say that something happened: `kind` and `fields` for programs, `message` for people.

    >>> event("retried", "bert: row 17 is computed again in float32", model="bert", rows=[17])
    """
    log.log(level, message or kind, extra={"event": kind, "fields": fields})
