"""What a cache costs when it has nothing: reads through an empty worker against reads of the store itself."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from benchmarks.machine import ALL_CORES, SERVER_CORES
from benchmarks.rounds import Settings, interleave
from benchmarks.scene import KIB, MIB, Scene, unpin
from benchmarks.table_row import Row, Target
from benchmarks.timing import aligned, summary
from kara_cache.cache_client import CacheClient
from kara_cache.ufs import open_store
from kara_cache.ufs.base import UnderStore

_ROUNDS = 5  # at most: each reads everything from the store
_FIRST_BYTES = 16  # reads in one round
_AT_LEAST = Target(0.97)


def run(scene: Scene) -> list[Row]:
    """Unpinned: reading direct uses two processes, reading through the cache three."""
    unpin(scene, ALL_CORES)
    try:
        rows = []
        for mount, how, url in (
            ("near", "fast store (nginx on this machine)", scene.nginx.url),
            ("far", "distant store (20 ms, 100 MB/s a connection)", scene.distant.url),
        ):
            store = open_store(url)
            with scene.client() as client:
                rows += _Cold(scene, client, store, mount, how).rows()
            store.close()
        return rows
    finally:
        unpin(scene, SERVER_CORES)


class _Cold:
    def __init__(self, scene: Scene, client: CacheClient, store: UnderStore, mount: str, how: str) -> None:
        self._scene, self._client, self._store, self._mount, self._how = scene, client, store, mount, how
        self._settings = Settings(min(_ROUNDS, scene.settings.rounds), scene.settings.seconds)
        self._big = scene.names["big"][0]
        self._small = scene.names["small"]
        self._memory = aligned(64 * MIB)

    def rows(self) -> list[Row]:
        return [
            self._ratio("file", "64 MiB file in one call", self._file_direct, self._file_cached),
            self._ratio("pieces", "64 MiB file, 1 MiB after 1 MiB", self._pieces_direct, self._pieces_cached),
            self._ratio(
                "small", "200 objects of 64 KiB, one after another", self._small_direct, self._small_cached
            ),
            self._first_byte(),
        ]

    def _ratio(self, key: str, what: str, direct: Callable[[], None], cached: Callable[[], None]) -> Row:
        rounds = self._compare(lambda: {"s": _seconds(direct)}, lambda: {"s": _seconds(cached)})
        detail = {f"{name} s": rounds.median(name, "s") for name in ("cache", "direct")}
        title = f"{self._how}: {what}, through an empty cache / direct, throughput"
        values = rounds.ratios("direct", "cache", "s")
        return Row(f"cold_{self._mount}_{key}", title, values, _AT_LEAST, detail=detail).of(rounds)

    def _first_byte(self) -> Row:
        view = self._memory[: 4 * KIB]
        paths = self._small[:_FIRST_BYTES]
        infos = [self._client.info(f"/{self._mount}/{path}") for path in paths]

        def direct() -> dict[str, float]:
            return summary([_seconds(lambda p=path: self._store.read_into(p, 0, view)) for path in paths])

        def cached() -> dict[str, float]:
            return summary([_seconds(lambda i=info: self._client.read_into(i, 0, view)) for info in infos])

        rounds = self._compare(direct, cached)
        values = [us / 1e3 for us in rounds.differences("cache", "direct", "p50")]
        detail = {f"{name} p50 ms": rounds.median(name, "p50") / 1e3 for name in ("cache", "direct")}
        what = f"{self._how}: first 4 KiB of an object, time added by an empty cache, p50"
        target = Target(1.5, "ms", at_least=False)
        return Row(f"cold_{self._mount}_first", what, values, target, "ms", detail).of(rounds)

    def _compare(self, direct: Callable[[], dict[str, float]], cached: Callable[[], dict[str, float]]):
        def emptied() -> dict[str, float]:
            self._client.free(f"/{self._mount}", recursive=True)
            fills = self._client.metrics.worker_reads["fill"]
            found = cached()
            if self._client.metrics.worker_reads["fill"] == fills:
                raise RuntimeError("a cold read was no fill: the cache was not empty")
            return found

        return interleave({"cache": emptied, "direct": direct}, self._settings.rounds, self._scene.meter)

    def _file_direct(self) -> None:
        self._store.read_into(self._big, 0, self._memory)

    def _file_cached(self) -> None:
        self._client.read_into(self._client.info(f"/{self._mount}/{self._big}"), 0, self._memory)

    def _pieces_direct(self) -> None:
        for at in range(0, len(self._memory), MIB):
            self._store.read_into(self._big, at, self._memory[at : at + MIB])

    def _pieces_cached(self) -> None:
        with_ahead = self._client.open_reader(self._client.info(f"/{self._mount}/{self._big}"))
        try:
            for at in range(0, len(self._memory), MIB):
                with_ahead.readinto_at(at, self._memory[at : at + MIB])
        finally:
            with_ahead.close()

    def _small_direct(self) -> None:
        for path in self._small:
            self._store.read_into(path, 0, self._memory[: 64 * KIB])

    def _small_cached(self) -> None:
        for path in self._small:
            info = self._client.info(f"/{self._mount}/{path}")
            self._client.read_into(info, 0, self._memory[: 64 * KIB])


def _seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began
