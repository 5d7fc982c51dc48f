"""Runs in object storage: each has a mirror on this machine, in which all work is done.

A file is uploaded, whole and under its final name, before it takes that name in the mirror; one
that is missing in the mirror is fetched when it is read. Size and time of change tell whether a
copy is that of its object, as rsync tells it: a file here has the time that its object has there.
Files whose names begin with a dot stay where they are.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clsight.errors import ClsightError, said
from clsight.events import event
from clsight.object_storage import AT_FIRST, Store, changed, connected, download

CACHE = "CLSIGHT_CACHE"
"""Environment variable: the folder of mirrors."""
MARK = ".store"
"""File of a mirror that holds its URL."""
GROWING = ".jsonl"
"""How names of files end that grow, each written by one process at a time."""
AT_ONCE = 8
EVERY = 15.0
"""Seconds between two uploads of a file that grows."""


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
        place: a path, or a URL (`s3://`, `gs://`, `az://`, or any other that fsspec knows); a path
            that this process was given for a URL stays as it is.

    Raises:
        UsageError: it is no URL of a folder, holds a password, or its filesystem is missing.
        ClsightError: the storage does not answer.
    """
    if isinstance(place, Path) and of(place) is not None:
        return place  # opened by this process
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
    return str(path) if store is None else store.place(path)


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


def _opened(url: str) -> Store:
    filesystem, root = connected(url)
    mirrors = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "clsight")
    name = re.sub(r"[^\w.-]+", "-", root.rpartition("/")[2])
    mirror = mirrors / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    mirror.mkdir(parents=True, exist_ok=True)
    (mirror / MARK).write_text(url, encoding="utf-8")
    return Store(MirrorPath(mirror.resolve()), url, filesystem, root.rstrip("/"))


def _is_copy(path: Path, info: dict[str, Any] | None) -> bool:
    there = path.stat()
    return info is not None and (there.st_size, int(there.st_mtime)) == (
        info["size"], int(changed(info)))
