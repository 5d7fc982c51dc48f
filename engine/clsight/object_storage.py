"""Requests to object storage: repeated with back-off, and told in sentences where they fail.

Nobody is asked for credentials: the filesystems find them where the tools of their providers do.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from clsight.errors import ClsightError, UsageError, said
from clsight.events import event

PARTIAL = ".partial-"
"""How names of files begin that are not whole yet; neither Arrow nor DuckDB sees them."""
PATIENCE = 900.0
"""Seconds for which a request is repeated until a run gives up."""
AT_FIRST = 30.0
"""The same for the first request of all: the address or the credentials may be wrong."""
LONGEST_WAIT = 30.0
RETRIES = {"mode": "adaptive", "max_attempts": 8}
"""Of S3's own client, which slows down where it is told to."""
EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "az", "abfs": "az", "abfss": "az"}
"""Scheme of a URL -> extra of this package that brings its filesystem."""
_CHANGED = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What filesystems call the time of an object's last change."""
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError,
          NotImplementedError, ValueError, TypeError)
"""What would fail again."""

T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """A place in object storage, and its mirror."""

    folder: Path
    url: str
    filesystem: Any
    root: str
    """The place, as the filesystem names it."""

    def name(self, path: Path) -> str:
        """The object of a file or folder of the mirror."""
        return "/".join([self.root, *path.relative_to(self.folder).parts])

    def place(self, path: Path) -> str:
        """The URL of the same."""
        return "/".join([self.url, *path.relative_to(self.folder).parts])

    def do(
        self, what: str, path: Path, operation: Callable[..., T], *arguments: Any,
        patience: float | None = None,
    ) -> T:
        """Ask the filesystem for something, again and again where that may help.

        Raises:
            FileNotFoundError, FileExistsError: as the filesystem says it.
            ClsightError: it refuses, or does not answer for `patience` seconds (`PATIENCE`).
        """
        from tenacity import Retrying, retry_if_not_exception_type, stop_after_delay
        from tenacity import wait_random_exponential as waits

        def waiting(state: Any) -> None:
            event("storage", f"{self.place(path)} cannot be {what} "
                  f"({said(state.outcome.exception())}); trying again in "
                  f"{state.next_action.sleep:.1f} s", logging.DEBUG,
                  attempt=state.attempt_number)

        attempts = Retrying(
            retry=retry_if_not_exception_type(_FINAL), wait=waits(0.5, LONGEST_WAIT),
            stop=stop_after_delay(patience or PATIENCE), before_sleep=waiting, reraise=True)
        try:
            return attempts(operation, *arguments)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            raise ClsightError(f"{self.place(path)} cannot be {what}: {said(error)}; what is "
                               "complete is kept, and the same command goes on") from error

    def listed(self, folder: Path, patience: float | None = None) -> dict[str, dict[str, Any]]:
        """Name -> what is known of the objects and folders in a folder."""
        try:
            found = self.do("listed", folder, partial(self.filesystem.ls, detail=True),
                            self.name(folder), patience=patience)
        except FileNotFoundError:
            return {}
        named = {info["name"].rstrip("/").rpartition("/")[2]: info for info in found}
        named.pop("", None)  # a folder's own marker
        return named

    def info(self, path: Path) -> dict[str, Any] | None:
        """What is known of an object; None where there is none."""
        try:
            found: dict[str, Any] = self.do("found", path, self.filesystem.info, self.name(path))
        except FileNotFoundError:
            return None
        return found if found["type"] == "file" else None


def connected(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and how it names the place.

    Raises:
        UsageError: it is no URL of a place, holds a password, or its filesystem is missing.
    """
    import fsspec

    scheme, parts = url.partition("://")[0], urlsplit(url)
    if parts.password or "=" in parts.query:  # a pattern may hold a question mark
        raise UsageError(f"{scheme}://…: a URL must not hold passwords or options; give them by "
                         "the environment, as the provider's own tools take them")
    options = {"config_kwargs": {"retries": RETRIES}} if scheme == "s3" else {}
    try:
        filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        return filesystem, str(root)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        install = f"pip install 'clsight[{extra}]'" if extra else said(error)
        raise UsageError(f"{url}: {install}") from error
    except ValueError as error:
        raise UsageError(f"{url}: {said(error)}") from error


def download(store: Store, path: Path, info: dict[str, Any]) -> None:
    """Bring an object to the place of its file; nothing where it was removed in the meantime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{path.name}-{uuid4().hex}")
    try:
        store.do("read", path, partial(_whole, store, info["size"]), path, temporary)
        os.utime(temporary, (changed(info),) * 2)
        temporary.replace(path)
    except FileNotFoundError:  # removed in the meantime
        temporary.unlink(missing_ok=True)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _whole(store: Store, size: int, path: Path, temporary: Path) -> None:
    """Fetch an object; one that is cut off is asked for again, a file that grows may be longer."""
    store.filesystem.get_file(store.name(path), str(temporary))
    if temporary.stat().st_size < size:
        raise OSError(f"{temporary.stat().st_size:,} of {size:,} bytes came")


def changed(info: dict[str, Any]) -> float:
    """When an object was written, in seconds since 1970."""
    found = next(info[key] for key in _CHANGED if info.get(key) is not None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found)
