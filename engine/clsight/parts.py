"""Which shards of a run are whose, where processes that know nothing of each other share them."""

import re
from collections.abc import Sequence
from typing import NamedTuple, Self

from clsight.errors import UsageError


class Part(NamedTuple):
    """Every `n`-th shard, from the shard `first` on."""

    first: int
    n: int

    @classmethod
    def of(cls, spelled: str) -> Self:
        """The part that is written as "0/4".

        >>> Part.of("1/2").own(["00000.parquet", "00001.parquet", "00002.parquet"])
        ['00001.parquet']

        Raises:
            UsageError: it is written otherwise.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", spelled)
        if match is None or int(match[1]) >= int(match[2]):
            raise UsageError(f"--shards {spelled}: write I/N, with I from 0 to N - 1")
        return cls(int(match[1]), int(match[2]))

    def own(self, names: Sequence[str]) -> list[str]:
        """Those of all shards' names, in their order, that are in this part."""
        return [*names[self.first :: self.n]]

    def __str__(self) -> str:
        """As it is given."""
        return f"{self.first}/{self.n}"
