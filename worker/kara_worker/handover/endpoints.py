"""Handing pages over, on the data port: docs/protocol.md, "Pages between workers"."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kara_cache.errors import PageCorrupt
from kara_cache.page import HEADER_BYTES, PageId
from kara_worker.access import AccessControl
from kara_worker.data_port.verified_read import in_memory, read_verified_copy
from kara_worker.handover.guests import Guests
from kara_worker.handover.offer import MAX_OFFER_BYTES, decode_offer, encode_taken
from kara_worker.http.output import PageSlice, SocketOutput
from kara_worker.http.request import Request
from kara_worker.page_cache import PageCache
from kara_worker.pages.page_store import StoredPage

Handler = Callable[[Request], Awaitable[None]]


class HandoverEndpoints:
    """Event loop only. For workers: both ask for the rights that only they give themselves."""

    def __init__(self, cache: PageCache, guests: Guests, access: AccessControl) -> None:
        self._cache = cache
        self._guests = guests
        self._access = access

    def routes(self) -> dict[tuple[str, str], tuple[str, Handler]]:
        """For `PageServer`: method and path to the name in metrics and the handler."""
        return {("POST", "/handover"): ("handover", self._offered), ("GET", "/page"): ("page", self._page)}

    async def _offered(self, request: Request) -> None:
        self._access.check(request, "admin", "/")
        offer = decode_offer(await request.body_bytes(MAX_OFFER_BYTES))
        task = await request.alive_during(self._guests.take(offer))
        await request.respond(200, encode_taken(task.result()), content_type="application/json")

    async def _page(self, request: Request) -> None:
        """Header and data as they are on SSD; whoever fetches it verifies both."""
        self._access.check(request, "admin", "/")
        page = _page_id(request)
        stored = await self._cache.run_on_disk(self._cache.pages.get, page)
        if stored is None:
            raise FileNotFoundError(f"page {page} is not here")
        header, output = stored.header, request.connection.output
        await request.start(length=HEADER_BYTES + header.length)
        if not isinstance(output, SocketOutput):
            await request.write(header.encode(), await self._cache.run_on_disk(_all_of, stored))
            return
        data = PageSlice(stored, stored.offset, header.length)
        if in_memory(stored):
            await request.write(header.encode(), data)
        else:
            await output.send_from_disk(header.encode(), data)


def _all_of(stored: StoredPage) -> bytes:
    try:
        return read_verified_copy(stored, 0, stored.header.length)
    except PageCorrupt as exc:  # the head is out: only the end of the connection says it
        raise ConnectionAbortedError(str(exc)) from exc


def _page_id(request: Request) -> PageId:
    file, index = request.query.get("file", ""), request.query.get("index", "")
    if len(file) != 32 or not (index.isascii() and index.isdigit() and len(index) < 19):
        raise ValueError(f"{request.path}: want file=32 hex digits and index=number")
    return PageId(bytes.fromhex(file), int(index))
