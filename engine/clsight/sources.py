"""Where the rows of a dataset are: in files by name, pattern, folder or URL, or at Hugging Face.

A source gives its rows in one order, always the same: files in the order of their names. It also
has a version, which is known without reading it.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pyarrow as pa

from clsight import object_storage, readers
from clsight.errors import ClsightError, UsageError, listed
from clsight.readers import Rows

_PARTITION = re.compile(r"([^/=]+)=([^/]*)")
_SAVED = ("dataset_dict.json", "state.json")
"""What `datasets.save_to_disk` leaves in a folder."""


class Source(Protocol):
    """The rows of a dataset."""

    def rows(self, wanted: Sequence[str], texts: Collection[str]) -> Iterator[Rows]:
        """The rows in order, in batches of any size; see `readers.read`."""

    def version(self) -> str | None:
        """What is another one where the content is; None where only reading would tell."""


def opened(path: str, split: str | None, streaming: bool) -> Source:
    """A source by its name.

    Args:
        path: a file, a pattern (`*`, `**`, `?`), or a folder of files, here or as a URL; a folder
            written by `datasets.save_to_disk`; the name of a dataset on the Hugging Face Hub.
        split: which split of a Hugging Face dataset.
        streaming: read one from the Hub, or by its loader, row by row, without storing it.

    Raises:
        UsageError: there is nothing, or nothing that can be read.
    """
    if "://" in path:
        return _remote(path)
    if _is_saved(path):
        return HuggingFace(path, split, False)
    if Path(path).is_file():
        return Files(path, (path,))
    if Path(path).is_dir():
        inside = _known(str(one) for one in Path(path).rglob("*") if one.is_file())
        return Files(path, inside, path) if inside and not split else HuggingFace(
            path, split, streaming)
    if glob.has_magic(path):
        found = [one for one in glob.glob(path, recursive=True) if os.path.isfile(one)]
        return Files(path, tuple(sorted(found)), _before_magic(path))
    if Path(path.removesuffix(".gz")).suffix:
        raise UsageError(f"there is no dataset at {path}")
    return HuggingFace(path, split, streaming)


@dataclass(frozen=True)
class Files:
    """Files that follow one another, here or in object storage."""

    path: str
    """As it was given, for messages."""
    files: tuple[str, ...]
    root: str = ""
    """Folders below it that are called NAME=VALUE are columns of the files in them."""
    filesystem: Any = None
    """None where they are here."""
    infos: Mapping[str, Any] = field(default_factory=dict)
    """What a storage said of each of its files when they were listed."""

    def __post_init__(self) -> None:
        """Refuse what nobody can read.

        Raises:
            UsageError: there are no files, or one has an unknown format.
        """
        if not self.files:
            raise UsageError(f"there is no dataset at {self.path}")
        for file in self.files:
            if _kind(file) not in readers.FORMATS:
                raise UsageError(f"{file}: {_kind(file) or 'a file without suffix'} is not a known "
                                 f"format; clsight reads {', '.join(readers.FORMATS)}")

    def rows(self, wanted: Sequence[str], texts: Collection[str]) -> Iterator[Rows]:
        """See `Source`.

        Raises:
            ClsightError: a file cannot be read, or lacks a column that the first one has.
        """
        expected: list[str] | None = None
        for file in self.files:
            with self._here(file) as here:
                read = readers.named(file, readers.read(here, _kind(file), wanted, texts))
                for rows in (self._partitioned(rows, file) for rows in read):
                    names = sorted(set(rows.names).intersection(wanted))
                    expected = names if expected is None else expected
                    # Objects of JSON may lack what others have: those rows say so themselves.
                    if names != expected and _kind(file) not in readers.OBJECTS:
                        raise ClsightError(f"{file} has other columns than {self.files[0]}: of "
                                           f"those that are read {listed(names)}, and not "
                                           f"{listed(expected)}")
                    yield rows

    def version(self) -> str | None:
        """Names, sizes and times of change; of objects what the storage says of their content."""
        seen = [(file.removeprefix(self.root), *self._seen(file)) for file in self.files]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def _seen(self, file: str) -> tuple[int, str]:
        if self.filesystem is None:
            found = os.stat(file)
            return found.st_size, str(found.st_mtime_ns)
        info = self.infos[file]
        content = info.get("ETag") or info.get("etag") or info.get("md5Hash")
        return info["size"], str(content or object_storage.changed(info))

    @contextmanager
    def _here(self, file: str) -> Iterator[str]:
        """The file on this machine, for as long as it is read."""
        if self.filesystem is None:
            yield file
            return
        with TemporaryDirectory(prefix="clsight-") as folder:
            root, _, name = file.rpartition("/")
            there = object_storage.Store(Path(folder), self.path, self.filesystem, root)
            here = Path(folder) / name
            object_storage.download(there, here, self.infos[file])
            if not here.exists():
                raise ClsightError(f"{file} is no more")
            yield str(here)

    @cached_property
    def _numbers(self) -> set[str]:
        """Partition columns whose values are whole numbers."""
        pairs = [pair for file in self.files for pair in self._values(file)]
        return {name for name, _ in pairs} - {
            name for name, value in pairs if not re.fullmatch(r"-?\d{1,18}", value)}

    def _values(self, file: str) -> list[tuple[str, str]]:
        if not self.root:
            return []
        return _PARTITION.findall(file.removeprefix(self.root).rpartition("/")[0])

    def _partitioned(self, rows: Rows, file: str) -> Rows:
        """The rows, with the columns that the file's folders name and it has not itself."""
        for name, value in self._values(file):
            if name not in rows.names:
                typed: Any = int(value) if name in self._numbers else value
                column = pa.array([typed] * len(rows))
                rows = Rows([*rows.names, name], rows.values.append_column(name, column),
                            rows.problem, rows.typed)
        return rows


@dataclass(frozen=True)
class HuggingFace:
    """A dataset that the library `datasets` opens."""

    path: str
    split: str | None
    streaming: bool

    def rows(self, wanted: Sequence[str], texts: Collection[str]) -> Iterator[Rows]:
        """See `Source`."""
        return readers.named(self.path, readers.hugging_face(self._data, wanted))

    def version(self) -> str | None:
        """As `datasets` computes it; not known of a stream."""
        return None if self.streaming else str(self._data._fingerprint)

    @cached_property
    def _data(self) -> Any:
        import datasets

        try:
            if _is_saved(self.path):
                data = datasets.load_from_disk(self.path)
            else:
                data = datasets.load_dataset(self.path, streaming=self.streaming)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path} is neither a file, nor a saved Hugging Face dataset, "
                             f"nor one on the Hub: {error}") from error
        if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
            if self.split not in data:
                raise UsageError(f"{self.path} has the splits {', '.join(map(str, data))}: pass "
                                 "--split")
            data = data[self.split]
        return data


def _remote(url: str) -> Files:
    filesystem, path = object_storage.connected(url)
    place = object_storage.Store(Path("/"), url, filesystem, path.rstrip("/"))
    listing = filesystem.glob if glob.has_magic(path) else filesystem.find
    try:
        infos = place.do("listed", Path("/"), partial(listing, path, detail=True))
    except FileNotFoundError:
        infos = {}
    infos = {file: info for file, info in infos.items() if info["type"] == "file"}
    if glob.has_magic(path):
        return Files(url, tuple(sorted(infos)), _before_magic(path), filesystem, infos)
    if [*infos] == [path]:
        return Files(url, (path,), "", filesystem, infos)
    return Files(url, _known([*infos]), path, filesystem, infos)


def _known(files: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    """Those whose format is known, and that are not hidden, by name."""
    return tuple(sorted(file for file in files if _kind(file) in readers.FORMATS
                        and file.rpartition("/")[2][0] not in "._"))


def _kind(file: str) -> str:
    return Path(file.removesuffix(".gz")).suffix


def _before_magic(pattern: str) -> str:
    """The folder of a pattern above its first wildcard."""
    plain = pattern[: min(pattern.find(c) for c in "*?[" if c in pattern)]
    return plain.rpartition("/")[0]


def _is_saved(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in _SAVED)
