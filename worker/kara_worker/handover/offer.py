"""What a worker that goes offers, and what became of it: the bodies of `POST /handover`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from kara_cache.errors import FormatError
from kara_cache.page import PageId

MAX_OFFER_BYTES = 1 << 20
MAX_PAGES = 256  # of one offer: 12 KB
_MAX_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Pages that `worker` has, to be fetched from it within `seconds`."""

    worker: str
    page_bytes: int
    seconds: float
    pages: tuple[PageId, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """taken + present <= the pages of the offer: the others were gone, damaged or not admitted."""

    taken: int
    bytes: int  # of those taken
    present: int  # were there already
    more: bool  # whether another offer is welcome: there is room, and time


def encode_offer(offer: Offer) -> bytes:
    files = [
        [file_id.hex(), [page.index for page in pages]]
        for file_id, pages in groupby(offer.pages, key=lambda page: page.file_id)
    ]
    document = {
        "worker": offer.worker,
        "page_bytes": offer.page_bytes,
        "seconds": offer.seconds,
        "files": files,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_offer(raw: bytes) -> Offer:
    """Raises FormatError for anything that `encode_offer` would not write."""
    try:
        document = json.loads(raw)
        pages = tuple(_pages(document["files"]))
        offer = Offer(document["worker"], document["page_bytes"], float(document["seconds"]), pages)
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise FormatError(f"no offer of pages: {exc!r:.200}") from exc
    if (
        not isinstance(offer.worker, str)
        or type(offer.page_bytes) is not int
        or not 0 < offer.seconds <= _MAX_SECONDS
        or len(pages) > MAX_PAGES
    ):
        raise FormatError(f"no offer of pages: {str(document)[:200]}")
    return offer


def _pages(files: Any) -> Iterable[PageId]:
    for identity, indices in files:
        file_id = bytes.fromhex(identity)
        for index in indices:
            if len(file_id) != 16 or type(index) is not int or not 0 <= index < 1 << 63:
                raise ValueError(f"page {index!r} of file {identity!r:.40}")
            yield PageId(file_id, index)


def encode_taken(taken: Taken) -> bytes:
    return json.dumps(asdict(taken)).encode()


def decode_taken(document: Any) -> Taken:
    """Of the parsed body. Raises FormatError."""
    try:
        taken = Taken(document["taken"], document["bytes"], document["present"], document["more"])
    except (KeyError, TypeError) as exc:
        raise FormatError(f"no answer to an offer: {document!r:.200}") from exc
    counts = (taken.taken, taken.bytes, taken.present)
    if type(taken.more) is not bool or not all(type(n) is int and n >= 0 for n in counts):
        raise FormatError(f"no answer to an offer: {document!r:.200}")
    return taken
