"""A worker with one mount, and the directory behind it, for tests that read and write through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kara_cache.filesystem import KaraFileSystem
from kara_worker.testing.cluster import LocalCluster


@dataclass(frozen=True)
class Mounted:
    """`/data` leads to `directory`; `options` are what `fsspec.filesystem("kara", **options)` needs."""

    cluster: LocalCluster
    directory: Path

    @property
    def options(self) -> dict[str, Any]:
        return self.cluster.client_options

    def filesystem(self, **options: Any) -> KaraFileSystem:
        """An instance of its own, that no other test has listings or transactions of."""
        return KaraFileSystem(**{**self.options, **options}, skip_instance_cache=True)


@contextmanager
def mounted(directory: Path, *, workers: int = 1, **settings: Any) -> Iterator[Mounted]:
    """Real workers; `directory` is made where it is missing."""
    data = directory / "data"
    data.mkdir(parents=True)
    # in a directory of its own, because a socket's path holds no more than 107 bytes
    with LocalCluster(workers, mounts={"data": f"file://{data}"}, **settings) as cluster:
        found = Mounted(cluster, data)
        try:
            yield found
        finally:
            found.filesystem().close()
