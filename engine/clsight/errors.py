"""What a user is told when something is wrong: one sentence that names it and how to mend it."""


from collections.abc import Sequence


class ClsightError(Exception):
    """The work failed; the command line prints the message alone and exits with 1."""


class UsageError(ClsightError):
    """The call itself cannot be right (an unknown column, a missing folder); exit code 2."""


def listed(values: Sequence[object], most: int = 10) -> str:
    """The values as English, the first `most` of them: `3, 17 and 4,003`, `1, 2 and 40 more`."""
    words = [f"{v:,}" if isinstance(v, int) else str(v) for v in values]
    if len(words) > most:
        words = [*words[:most], f"{len(values) - most:,} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"
