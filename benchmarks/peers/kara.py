"""Ours, measured exactly as the peers are: in a process of its own, by the same loop.

Over TCP as from another host, or as on the worker's own host; through CacheClient or through fsspec.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.peers.peer import Peer, Served

if TYPE_CHECKING:
    from benchmarks.scene import Scene


@contextlib.contextmanager
def _serve(scene: Scene, *, face: str, local: bool) -> Iterator[Served]:
    options = {**scene.cluster.client_options, "local_reads": local}
    path = f"/near/{scene.names['big'][0]}"
    yield Served({"face": face, "path": path, "client": options}, misses=scene.fetched)


def _peer(key: str, name: str, face: str, *, local: bool) -> Peer:
    return Peer(name, key, __name__, "checksums on", partial(_serve, face=face, local=local), rival="")


RIVALS = {
    peer.key: peer
    for peer in (
        _peer("kara_tcp", "CacheClient over TCP", "client", local=False),
        _peer("kara_host", "CacheClient on the worker's host", "client", local=True),
        _peer("kara_file_tcp", "fsspec file over TCP", "file", local=False),
        _peer("kara_file_host", "fsspec file on the worker's host", "file", local=True),
        _peer("kara_cat_tcp", "fsspec cat_file over TCP", "cat", local=False),
    )
}


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        self._path = options["path"]
        face: Callable[[dict[str, Any]], Callable[[int, int], Any]] = getattr(self, f"_by_{options['face']}")
        self.read = face(options["client"])

    def prepare(self, length: int, places: list[int]) -> None:
        """A page is written after it was served: reads until nothing is fetched would not be measured."""
        for start in places:
            self.read(length, start)

    def _by_client(self, options: dict[str, Any]) -> Callable[[int, int], Any]:
        from benchmarks.timing import aligned
        from kara_cache.cache_client import CacheClient
        from kara_cache.config import ClientConfig

        self._client = CacheClient(ClientConfig.load(env={}, **options))
        info = self._client.info(self._path)
        buffer = aligned(info.size)
        read_into = self._client.read_into

        def read(length: int, start: int) -> memoryview:
            view = buffer[: length or info.size]
            read_into(info, start, view)
            return view

        return read

    def _by_file(self, options: dict[str, Any]) -> Callable[[int, int], Any]:
        file = self._filesystem(options).open(self._path, "rb")

        def read(length: int, start: int) -> bytes:
            file.seek(start)
            return file.read(length or -1)  # type: ignore[no-any-return]

        return read

    def _by_cat(self, options: dict[str, Any]) -> Callable[[int, int], Any]:
        cat_file = self._filesystem(options).cat_file
        return lambda length, start: cat_file(self._path, start, start + length if length else None)

    def _filesystem(self, options: dict[str, Any]) -> Any:
        import fsspec

        return fsspec.filesystem("kara", **options, skip_instance_cache=True)
