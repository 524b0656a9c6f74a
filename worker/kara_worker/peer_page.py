"""A page of another worker, fetched or taken over."""

from __future__ import annotations

from kara_cache.checksum import checksum
from kara_cache.errors import CacheError, FormatError, PageCorrupt, WorkerUnavailable
from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_cache.transport.worker_client import WorkerClient
from kara_worker.page_cache import PageCache


def fetch_page(client: WorkerClient, page: PageId, deadline: float) -> tuple[PageHeader, memoryview]:
    """A page of another worker and its header, both verified. Raises CacheError, OSError, FormatError."""
    link = client.link
    query = (("file", page.file_id.hex()), ("index", page.index))
    connection = link.send(link.request("GET", "/page", query), deadline)
    size = connection.head.length
    if connection.head.status != 200 or size is None or size <= HEADER_BYTES:
        link.document(connection, str(page))
        raise WorkerUnavailable(f"{link.where}: no page {page}", reason="protocol")
    try:
        view = memoryview(bytearray(size))
        if connection.receive_into(view) != size:
            raise CacheError(f"{link.where}: page {page} ended early")
    except BaseException:
        link.discard(connection)
        raise
    link.release(connection)
    header, data = PageHeader.decode(view[:HEADER_BYTES]), view[HEADER_BYTES:]
    if header.page != page or header.length != len(data) or checksum(data) != header.page_sum:
        raise PageCorrupt(f"{link.where}: page {page} is not what was filled")
    return header, data


def take_page(cache: PageCache, client: WorkerClient, page: PageId, deadline: float) -> PageHeader | None:
    """Has a page of another worker put on SSD here; None where it was not admitted.

    Raises CacheError, OSError, and FormatError also where the other one has pages of another size.
    """
    header, data = fetch_page(client, page, deadline)
    mount, _ = cache.stores.locate(header.path)
    if header.page_bytes != cache.page_bytes:
        raise FormatError(f"page {page} of {header.page_bytes} bytes")
    cache.before_put(page.file_id, header.path)
    return header if cache.pages.put(header, data, group=mount.name) else None
