"""A page of another worker."""

from __future__ import annotations

from kara_cache.checksum import checksum
from kara_cache.errors import CacheError, PageCorrupt, WorkerUnavailable
from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_cache.transport.worker_client import WorkerClient


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
