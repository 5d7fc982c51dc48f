"""Where the shards of a run are worked on: in this process, in several, or on a Ray cluster.

What a shard takes, how it is committed and how a run resumes is the worker's own; see `extract`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clsight.errors import UsageError

if TYPE_CHECKING:
    from clsight.executors.jobs import Executor

NAMES = ("local", "ray")


@contextmanager
def opened(
    name: str, device: str, workers: int | None, ray_address: str | None
) -> Iterator["Executor"]:
    """An executor by its name.

    Args:
        name: one of `NAMES`.
        device: "auto", "cpu" or "cuda".
        workers: how many; None for one a card, or what suits the processors.
        ray_address: of a cluster.

    Raises:
        UsageError: it cannot be had here.
    """
    if name == "local":
        from clsight.executors.local import local

        yield local(device, workers)
        return
    try:
        from clsight.executors.ray import connected
    except ImportError as error:
        raise UsageError("--executor ray: Ray is not installed; pip install 'clsight[ray]'"
                         ) from error
    with connected(ray_address, device, workers) as cluster:
        yield cluster
