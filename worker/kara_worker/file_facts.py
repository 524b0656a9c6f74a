"""What the store says of a file now, as fresh as its mount asks for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from kara_cache.mount import Mount
from kara_cache.ufs.base import FileInfo
from kara_worker.listings import Listings
from kara_worker.mount_threads import MountThreads
from kara_worker.mounted_stores import MountedStores
from kara_worker.single_flight import SingleFlight

_MAX_ENTRIES = 200_000


class FileFacts:
    """`revalidate` asks the store every time: an answer that was on its way before the caller asked
    could be older than a write the caller knows of, so requests are not shared. `max_age` asks at
    most once in that time, `immutable` once. Errors are never remembered: a file that was missing a
    moment ago may be there now. Event loop only."""

    def __init__(
        self, stores: MountedStores, threads: MountThreads, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stores = stores
        self._threads = threads
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, FileInfo]] = OrderedDict()
        self._flights: SingleFlight[str, FileInfo] = SingleFlight()
        self.listings = Listings(stores, threads, clock=clock)

    async def info(self, path: str, max_age_s: float = math.inf) -> FileInfo:
        """What was learnt more than `max_age_s` ago does not do for this caller, who has written since."""
        if path == "/":
            return self._stores.info(path)
        mount, _ = self._stores.locate(path)
        known = self._known.get(path)
        if known is None and mount.freshness.trusts(0) and (listed := self.listings.find(path)) is not None:
            known = listed
            self._keep(path, *known)
        if known is not None:
            age_s = self._clock() - known[0]
            if mount.freshness.trusts(age_s) and age_s <= max_age_s:
                self._known.move_to_end(path)
                return known[1]
        if not mount.freshness.trusts(0):
            return await self._ask(path)
        if max_age_s < math.inf:  # a request that is under way may have begun before
            return await self._ask_and_remember(path)
        return await self._flights.run(path, lambda: self._ask_and_remember(path))

    def known(self, path: str) -> FileInfo | None:
        """What `info` would answer without asking a store, None where it would ask."""
        known = self._known.get(path)
        if known is None:
            return None
        mount, _ = self._stores.locate(path)
        return known[1] if mount.freshness.trusts(self._clock() - known[0]) else None

    def mount_of(self, path: str) -> Mount:
        return self._stores.locate(path)[0]

    def held(self, path: str, mount: Mount) -> FileInfo | None:
        """As `known`, for a normal path of this mount."""
        known = self._known.get(path)
        if known is None or not mount.freshness.trusts(self._clock() - known[0]):
            return None
        return known[1]

    def remember(self, info: FileInfo) -> None:
        """What the store has just told in a listing; of use where the mount trusts it for a while."""
        mount, _ = self._stores.locate(info.path)
        if mount.freshness.trusts(0) and not info.is_dir:
            self._keep(info.path, self._clock(), info)

    def forget(self, path: str) -> None:
        """After a write through this worker."""
        self._known.pop(path, None)
        self.listings.forget(path)

    def clear(self) -> None:
        self._known.clear()
        self.listings.clear()

    async def _ask_and_remember(self, path: str) -> FileInfo:
        began = self._clock()
        info = await self._ask(path)
        if not info.is_dir:
            self._keep(path, began, info)
        return info

    def _keep(self, path: str, since: float, info: FileInfo) -> None:
        self._known[path] = (since, info)
        self._known.move_to_end(path)
        if len(self._known) > _MAX_ENTRIES:
            self._known.popitem(last=False)

    async def _ask(self, path: str) -> FileInfo:
        mount, _ = self._stores.locate(path)
        threads = self._threads.of(mount.name)
        return await asyncio.get_running_loop().run_in_executor(threads, self._stores.info, path)
