"""The workers that stay: pages of one that goes, kept until it is back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kara_cache.cluster import Cluster
from kara_cache.errors import KaraError, WorkerBusy
from kara_cache.membership.base import MemberState
from kara_cache.page import PageHeader, PageId
from kara_cache.stripe import STRIPE_BYTES
from kara_cache.transport.worker_client import WorkerClient
from kara_worker.handover.offer import Offer, Taken
from kara_worker.page_cache import PageCache
from kara_worker.peer_page import take_page

log = logging.getLogger(__name__)

_THREADS = 4  # pages that are fetched at the same time: enough for 10 Gbit/s, and readers go on beside them
_SHARE = 8  # at most an eighth of the capacity where others' pages would have to go; chosen by feel
_STAY_S = 120.0  # after its last offer: by then all clients know that a worker which is back is back
_BACK_S = 10.0  # the same, when we go ourselves and nobody would drop them; a pod is ready for so long


@dataclass(slots=True)
class _Stay:
    """The pages of one worker."""

    since: float  # monotonic, of the last offer
    pages: dict[PageId, int] = field(default_factory=dict)  # and their bytes


class Guests:
    """Event loop only; pages are fetched and dropped in threads.

    A guest is a page like any other for readers and for eviction. When its worker is back it is dropped, and
    when its worker's place was given up it stays: then it is ours.
    """

    def __init__(
        self, cache: PageCache, cluster: Cluster, *, own: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        self._cluster = cluster
        self._own = own
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="guest")
        self._stays: dict[str, _Stay] = {}  # by worker
        self._closing = False
        self.pages_taken = self.bytes_taken = 0

    @property
    def bytes(self) -> int:
        """Of all guests that were not dropped; some may have been evicted."""
        return sum(sum(stay.pages.values()) for stay in self._stays.values())

    async def take(self, offer: Offer) -> Taken:
        """Fetches what is missing here. Raises WorkerBusy when none of it is welcome."""
        client = self._cluster.table().clients.get(offer.worker)
        if self._closing or client is None or offer.worker == self._own:
            why = "it goes itself" if self._closing else f"{offer.worker} is no other member"
            raise WorkerBusy(f"worker {self._own} takes no pages: {why}")
        if offer.page_bytes != self._cache.page_bytes:
            what = f"pages of {offer.page_bytes} bytes, of {self._cache.page_bytes} here"
            raise WorkerBusy(f"worker {self._own} takes no pages: {what}")
        stay = self._stays.setdefault(offer.worker, _Stay(0.0))
        stay.since = self._clock()
        ends = time.monotonic() + offer.seconds
        missing = [page for page in offer.pages if not self._cache.pages.contains(page)]
        room = self._room()
        loop = asyncio.get_running_loop()
        welcome = missing[: max(0, room // self._cache.page_bytes)]
        answers = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._fetch, client, page, ends) for page in welcome)
        )
        taken = [header for header in answers if header is not None]
        for header in taken:
            if self._is_guest(header):
                stay.pages[header.page] = header.length
        size = sum(header.length for header in taken)
        self.pages_taken += len(taken)
        self.bytes_taken += size
        more = len(welcome) == len(missing) and time.monotonic() < ends and not self._closing
        return Taken(len(taken), size, len(offer.pages) - len(missing), more)

    def _room(self) -> int:
        stats = self._cache.pages.stats()
        share = stats.capacity_bytes // _SHARE - self.bytes
        return max(share, stats.capacity_bytes - stats.bytes)

    def _is_guest(self, header: PageHeader) -> bool:
        """Not where we are one of the file's owners anyway."""
        mount, _ = self._cache.stores.locate(header.path)
        stripe = header.page.index * self._cache.page_bytes // STRIPE_BYTES
        owners = self._cluster.owners(self._cluster.table(), header.path, stripe)
        return self._own not in owners[: mount.replicas]

    def _fetch(self, client: WorkerClient, page: PageId, ends: float) -> PageHeader | None:
        """In a thread. None where it did not come, or was not admitted."""
        if self._closing or time.monotonic() >= ends:
            return None
        try:
            return take_page(self._cache, client, page, ends)
        except (KaraError, OSError, ValueError) as exc:
            log.debug("guest.failed %s of worker %s: %s", page, client.id, exc)
            return None

    async def sweep(self) -> int:
        """Drops pages of workers that are back; their number. To be called now and then."""
        return await self._drop_returned(_STAY_S)

    async def close(self) -> None:
        """Takes no more, and drops what nobody would drop later. Idempotent."""
        if self._closing:
            return
        self._closing = True
        await self._drop_returned(_BACK_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _drop_returned(self, stay_s: float) -> int:
        states = {worker.id: worker.state for worker in self._cluster.table().view.workers}
        dropped = 0
        for worker, stay in list(self._stays.items()):
            state = states.get(worker)
            if state is not None and state is not MemberState.ACTIVE:
                continue
            if state is MemberState.ACTIVE and self._clock() - stay.since < stay_s:
                continue
            del self._stays[worker]
            if state is MemberState.ACTIVE:
                count = await self._cache.run_on_disk(self._drop, list(stay.pages))
                log.info("worker %s is back, %d of its pages were dropped here", worker, count)
                dropped += count
        return dropped

    def _drop(self, pages: Sequence[PageId]) -> int:
        return sum(self._cache.pages.drop(page, "returned") for page in pages)
