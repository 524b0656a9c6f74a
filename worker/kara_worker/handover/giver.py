"""The worker that goes: which pages it offers to whom, newest first, within its bounds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kara_cache.cluster import Cluster, Table
from kara_cache.errors import FormatError, KaraError
from kara_cache.page import PageId
from kara_cache.quantity import format_bytes
from kara_cache.stripe import stripes
from kara_cache.transport.worker_client import WorkerClient
from kara_worker.config import HandoverConfig
from kara_worker.handover.offer import MAX_PAGES, Offer, Taken, decode_taken, encode_offer
from kara_worker.hot_paths import ReadFile
from kara_worker.jobs.throttle import Throttle
from kara_worker.page_cache import PageCache

log = logging.getLogger(__name__)

_OFFER_BYTES = 32 << 20  # so that a receiver that stops in the middle has told of most
_RECEIVERS = 16  # that are asked at the same time
_ROUNDS = 4  # a later one has what was read meanwhile, and what somebody refused


@dataclass(slots=True)
class Given:
    """What others took."""

    pages: int = 0
    bytes: int = 0
    present: int = 0  # pages that they had


@dataclass(slots=True)
class Progress:
    """Of one handover."""

    ends: float  # monotonic
    left_bytes: int
    told: set[PageId]
    refused: set[str]  # workers


class Handover:
    """Event loop only.

    What readers want next is guessed by files: those that were read last, whole, newest first. So a hot
    set is there when its readers come, and a file that is read from front to back goes on without a gap.
    """

    def __init__(
        self,
        cache: PageCache,
        cluster: Cluster,
        lately: Callable[[], Sequence[ReadFile]],
        config: HandoverConfig,
        *,
        own: str,
    ) -> None:
        """`own` is this worker's id, `lately` the files that were read last."""
        self._cache = cache
        self._cluster = cluster
        self._lately = lately
        self._config = config
        self._own = own
        self._throttle = Throttle(config.handover_bandwidth_bytes_per_s)
        self.given = Given()

    async def give(self) -> Given:
        """Returns when others have what they take, or a bound is reached. Raises nothing of theirs."""
        config = self._config
        began = time.monotonic()
        progress = Progress(began + config.handover_timeout_s, config.handover_bytes, set(), set())
        with ThreadPoolExecutor(_RECEIVERS, thread_name_prefix="handover") as threads:
            for _ in range(_ROUNDS):
                plan = await self._cache.run_on_disk(self._plan, self._lately(), progress)
                if not plan:
                    break
                await asyncio.gather(
                    *(self._give_to(worker, pages, progress, threads) for worker, pages in plan.items())
                )
        given = self.given
        if given.pages or given.present:
            log.info(
                "worker %s handed over %d pages, %s, in %.1f s; %d were there already",
                self._own, given.pages, format_bytes(given.bytes), time.monotonic() - began, given.present,
            )  # fmt: skip
        return given

    def _plan(self, files: Sequence[ReadFile], progress: Progress) -> dict[str, list[tuple[PageId, int]]]:
        """Receiver -> pages and their lengths, in the order of their worth. On a disk thread."""
        plan: dict[str, list[tuple[PageId, int]]] = {}
        table, left = self._cluster.table(), progress.left_bytes
        for receiver, page, length in self._wanted(table, files, progress):
            if left < length or time.monotonic() >= progress.ends:
                break
            left -= length
            plan.setdefault(receiver, []).append((page, length))
        return plan

    def _wanted(
        self, table: Table, files: Sequence[ReadFile], progress: Progress
    ) -> Iterator[tuple[str, PageId, int]]:
        page_bytes, pages = self._cache.page_bytes, self._cache.pages
        for file in files:
            mount, _ = self._cache.stores.locate(file.path)
            for stripe in stripes(0, file.size):
                owners = self._cluster.owners(table, file.path, stripe.index)
                receiver = next_owner(owners, self._own, table.live - progress.refused, mount.replicas)
                if receiver is None:
                    continue
                for index in range(stripe.start // page_bytes, -(-stripe.stop // page_bytes)):
                    page = PageId(file.file_id, index)
                    if page not in progress.told and pages.contains(page):
                        yield receiver, page, min(page_bytes, file.size - index * page_bytes)

    async def _give_to(
        self,
        worker: str,
        pages: Sequence[tuple[PageId, int]],
        progress: Progress,
        threads: ThreadPoolExecutor,
    ) -> None:
        client, loop = self._cluster.table().clients.get(worker), asyncio.get_running_loop()
        for some in _cut(pages):
            await self._throttle.take(sum(length for _, length in some))
            seconds = progress.ends - time.monotonic()
            if client is None or seconds <= 0:
                break
            offer = Offer(self._own, self._cache.page_bytes, seconds, tuple(page for page, _ in some))
            taken = await loop.run_in_executor(threads, self._ask, client, offer, progress.ends)
            if taken is None:
                break
            progress.told.update(offer.pages)
            progress.left_bytes -= taken.bytes
            self.given.pages += taken.taken
            self.given.bytes += taken.bytes
            self.given.present += taken.present
            if not taken.more:
                break
        else:
            return
        progress.refused.add(worker)

    def _ask(self, client: WorkerClient, offer: Offer, ends: float) -> Taken | None:
        try:
            return decode_taken(client.call("POST", "/handover", ends, body=encode_offer(offer)))
        except (KaraError, OSError, ValueError, FormatError) as exc:
            log.info("worker %s takes no pages: %s", client.id, exc)
            return None


def next_owner(owners: Sequence[str], own: str, live: frozenset[str], replicas: int) -> str | None:
    """Who is asked for a stripe when `own` is gone; None where `own` is not asked today."""
    ranked = [worker for worker in owners if worker in live or worker == own]
    if own not in ranked[:replicas]:
        return None
    return next((worker for worker in ranked if worker != own), None)


def _cut(pages: Sequence[tuple[PageId, int]]) -> Iterator[list[tuple[PageId, int]]]:
    """Offers of a few pages, never empty."""
    some: list[tuple[PageId, int]] = []
    size = 0
    for page, length in pages:
        if some and (size + length > _OFFER_BYTES or len(some) == MAX_PAGES):
            yield some
            some, size = [], 0
        some.append((page, length))
        size += length
    if some:
        yield some
