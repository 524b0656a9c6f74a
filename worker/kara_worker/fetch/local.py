"""A `Source` that fetches in the thread that asks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

from kara_cache.mount import Mount
from kara_worker.fetch.source import Fetched, Progress, Wanted, shorter, sums_of
from kara_worker.mounted_stores import MountedStores


class LocalSource:
    """As many seats as anybody wants."""

    def __init__(self, stores: MountedStores, page_bytes: int, *, seat_bytes: int) -> None:
        self.seat_bytes = seat_bytes
        self._stores = stores
        self._page_bytes = page_bytes

    def borrow(self) -> LocalSeat:
        return LocalSeat(self._stores, self._page_bytes)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


class LocalSeat:
    def __init__(self, stores: MountedStores, page_bytes: int) -> None:
        self._stores = stores
        self._page_bytes = page_bytes
        self._buffers: list[memoryview] = []

    def buffers(self, lengths: Sequence[int]) -> list[memoryview]:
        self._buffers = [memoryview(bytearray(length)) for length in lengths]
        return self._buffers

    def fetch(self, mount: Mount, wanted: Sequence[Wanted], progress: Progress) -> Iterator[Fetched]:
        for index, one in enumerate(wanted):
            view, began = self._buffers[index], time.perf_counter()
            try:
                count = self._stores.read_into(
                    mount, one.relative, one.start, view, one.version, partial(progress, index)
                )
                if count != one.length:
                    raise shorter(one, count)
                sums = sums_of(view, self._page_bytes)
            except Exception as exc:  # noqa: BLE001 - as for a task's top: it is told to whoever waits
                yield Fetched(index, time.perf_counter() - began, (), exc)
            else:
                yield Fetched(index, time.perf_counter() - began, sums)

    def release(self, *, keep: bool) -> None:
        self._buffers = []
