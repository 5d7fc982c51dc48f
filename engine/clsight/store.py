"""Runs in object storage: each has a mirror on this machine, in which all work is done.

A file is uploaded, whole and under its final name, before it takes that name in the mirror; one
that is missing in the mirror is fetched when it is read. Size and time of change tell whether a
copy is that of its object, as rsync tells it: a file here has the time that its object has there.
Files whose names begin with a dot stay where they are.

Nobody is asked for credentials: the filesystems find them where the tools of their providers do.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from clsight.errors import ClsightError, UsageError, said
from clsight.events import event

CACHE = "CLSIGHT_CACHE"
"""Environment variable: the folder of mirrors."""
MARK = ".store"
"""File of a mirror that holds its URL."""
PARTIAL = ".partial-"
"""How names of files begin that are not whole yet; neither Arrow nor DuckDB sees them."""
GROWING = ".jsonl"
"""How names of files end that grow, each written by one process at a time."""
AT_ONCE = 8
PATIENCE = 900.0
"""Seconds for which a request is repeated until a run gives up."""
AT_FIRST = 30.0
"""The same for the first request of all: the address or the credentials may be wrong."""
LONGEST_WAIT = 30.0
EVERY = 15.0
"""Seconds between two uploads of a file that grows."""
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
            event("storage", f"{place(path)} cannot be {what} ({said(state.outcome.exception())}); "
                  f"trying again in {state.next_action.sleep:.1f} s", logging.DEBUG,
                  attempt=state.attempt_number)

        attempts = Retrying(
            retry=retry_if_not_exception_type(_FINAL), wait=waits(0.5, LONGEST_WAIT),
            stop=stop_after_delay(patience or PATIENCE), before_sleep=waiting, reraise=True)
        try:
            return attempts(operation, *arguments)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            raise ClsightError(f"{place(path)} cannot be {what}: {said(error)}; what is complete "
                               "is kept, and the same command goes on") from error

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


class MirrorPath(type(Path())):  # type: ignore[misc]
    """A path in a mirror: a plain path, which messages name by its URL."""

    def __format__(self, how: str) -> str:
        """As users know it; `str` is where it is."""
        return format(place(self), how)


_stores: dict[Path, Store] = {}
"""Mirrors that this process has opened."""


def folder(place: str | Path) -> Path:
    """The folder in which a run is worked on; of a URL, its mirror, less what is old in it.

    Args:
        place: a path, or a URL (`s3://`, `gs://`, `az://`, or any other that fsspec knows).

    Raises:
        UsageError: it is no URL of a folder, holds a password, or its filesystem is missing.
        ClsightError: the storage does not answer.
    """
    if "://" not in str(place) or isinstance(place, Path):
        mark = Path(place) / MARK
        if not mark.is_file():
            return Path(place)
        url = mark.read_text(encoding="utf-8")
    else:
        url = place.rstrip("/")
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    store = _opened(url)
    _stores[store.folder] = store
    store.listed(store.folder, AT_FIRST)
    reconcile(store.folder)
    return store.folder


def place(path: Path) -> str:
    """How users name a run, or a file in it: its URL, or its path."""
    store = of(path)
    return str(path) if store is None else "/".join(
        [store.url, *path.relative_to(store.folder).parts])


def of(path: Path) -> Store | None:
    """The store in whose mirror a path is."""
    if not _stores:
        return None
    return next((_stores[one] for one in (path, *path.parents) if one in _stores), None)


def reconcile(run: Path) -> None:
    """Take out of a mirror what another machine has changed or removed."""
    store = of(run)
    if store is None:
        return
    for root, folders, names in os.walk(run):
        folders[:] = [one for one in folders if one[0] != "."]
        # Here first: what is committed in between is there before it is here.
        here = [Path(root, one) for one in names if one[0] != "." and not one.endswith(GROWING)]
        there = store.listed(Path(root)) if here else {}
        for path in here:
            if not _is_copy(path, there.get(path.name)):
                path.unlink(missing_ok=True)


def fetched(path: Path) -> Path:
    """The same path, where its file now is, if it is anywhere."""
    store = of(path)
    if store is not None and not path.exists() and (info := store.info(path)) is not None:
        download(store, path, info)
    return path


def fetch(*folders: Path) -> None:
    """Bring what lies directly in folders, and is not here yet."""
    wanted = [
        (store, folder / name, info) for folder in folders if (store := of(folder)) is not None
        for name, info in store.listed(folder).items()
        if name[0] != "." and info["type"] == "file" and not (folder / name).exists()
    ]
    if not wanted:
        return
    size = sum(info["size"] for *_, info in wanted)
    event("fetching", f"fetching {len(wanted):,} files of {size / 1e6:,.1f} MB from "
          f"{wanted[0][0].url}", n_files=len(wanted), n_bytes=size)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in threads.map(lambda one: download(*one), wanted):
            pass


def fetch_afresh(run: Path) -> None:
    """Bring all that the storage has of a run, also what is here already."""
    store = of(run)
    if store is None:
        return
    for path in [*run.rglob("[!.]*")]:
        if path.is_file() and path.suffix != GROWING:
            path.unlink()
    folders = [run]
    for folder in folders:
        folders += [folder / name for name, info in store.listed(folder).items()
                    if info["type"] == "directory" and name[0] != "."]
    fetch(*folders)


def names(folder: Path) -> set[str]:
    """Names of the files and folders in a folder; none where it is missing."""
    store = of(folder)
    if store is not None:
        return set(store.listed(folder))
    return set(os.listdir(folder)) if folder.is_dir() else set()


def exists(path: Path) -> bool:
    """True where a file is, here or in the storage."""
    store = of(path)
    return path.is_file() or (store is not None and store.info(path) is not None)


def push(written: Path, path: Path) -> None:
    """Upload what is about to take the name `path`; nothing where no store is concerned.

    Raises:
        ClsightError: it did not get there whole.
    """
    store = of(path)
    if store is None or any(part[0] == "." for part in path.relative_to(store.folder).parts):
        return
    try:
        store.do("written", path, store.filesystem.put_file, str(written), store.name(path))
        info = store.info(path)
    except (FileNotFoundError, FileExistsError) as error:  # no such bucket
        raise ClsightError(f"{place(path)} cannot be written: {said(error)}") from error
    if info is None or info["size"] != written.stat().st_size:
        there = "nothing" if info is None else f"{info['size']:,} bytes"
        raise ClsightError(f"{place(path)} is {there} in the storage, where "
                           f"{written.stat().st_size:,} bytes were written")
    os.utime(written, (changed(info),) * 2)


def remove(path: Path) -> None:
    """Remove an object, or all in a folder, for good."""
    store = of(path)
    if store is None:
        return
    with suppress(FileNotFoundError):
        store.do("removed", path, partial(store.filesystem.rm, recursive=True), store.name(path))


def rename(path: Path, name: str) -> None:
    """Give a file another name in its folder."""
    store, new = of(path), path.with_name(name)
    if store is not None:
        store.do("renamed", path, store.filesystem.mv, store.name(path), store.name(new))
    path.rename(new)


def catch_up(folder: Path) -> None:
    """Bring those of the files that grow of which there is more in the storage."""
    store = of(folder)
    if store is None:
        return
    for name, info in store.listed(folder).items():
        path = folder / name
        if path.suffix != GROWING:
            continue
        if not path.is_file() or path.stat().st_size < info["size"]:
            download(store, path, info)


@contextmanager
def followed(path: Path) -> Iterator[None]:
    """Upload a file that the block appends to, every few seconds and at the end."""
    store, sent = of(path), -1
    if store is None:
        yield
        return

    def follow() -> None:
        nonlocal sent
        size = path.stat().st_size
        if size != sent:
            store.do("written", path, store.filesystem.pipe_file, store.name(path),
                     path.read_bytes())
            sent = size

    try:
        with every(EVERY, follow):
            yield
    finally:
        follow()


@contextmanager
def every(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Do something beside the block, again and again; where it fails, that is said."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            try:
                act()
            except (ClsightError, OSError) as error:
                event("storage", said(error), logging.WARNING)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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


def _opened(url: str) -> Store:
    filesystem, root = connected(url)
    mirrors = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "clsight")
    name = re.sub(r"[^\w.-]+", "-", root.rpartition("/")[2])
    mirror = mirrors / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    mirror.mkdir(parents=True, exist_ok=True)
    (mirror / MARK).write_text(url, encoding="utf-8")
    return Store(MirrorPath(mirror.resolve()), url, filesystem, root.rstrip("/"))


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


def _is_copy(path: Path, info: dict[str, Any] | None) -> bool:
    there = path.stat()
    return info is not None and (there.st_size, int(there.st_mtime)) == (
        info["size"], int(changed(info)))


def changed(info: dict[str, Any]) -> float:
    """When an object was written, in seconds since 1970."""
    found = next(info[key] for key in _CHANGED if info.get(key) is not None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found)
