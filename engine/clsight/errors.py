"""What a user is told when something is wrong: one sentence that names it and how to mend it."""


from collections.abc import Sequence

MOST_SAID = 300
"""Characters of another library's message within one of ours."""


class ClsightError(Exception):
    """The work failed; the command line prints the message alone and exits with 1."""


class UsageError(ClsightError):
    """The call itself cannot be right (an unknown column, a missing folder); exit code 2."""


class Stopped(BaseException):
    """Somebody asked the process to end (SIGTERM, SIGINT); no `except Exception` may hold it up."""


def listed(values: Sequence[object], most: int = 10) -> str:
    """The values as English, the first `most` of them: `3, 17 and 4,003`, `1, 2 and 40 more`."""
    words = [f"{v:,}" if isinstance(v, int) else str(v) for v in values]
    if len(words) > most:
        words = [*words[:most], f"{len(values) - most:,} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"


def said(error: BaseException) -> str:
    """What an error of a library says, on one line of bearable length."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= MOST_SAID else f"{line[:MOST_SAID]}…"


def printable(text: str) -> str:
    """Text for a terminal: control characters could move its cursor or change its colours."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
