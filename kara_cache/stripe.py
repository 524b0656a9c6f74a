"""Stripes: the unit of placement. A file up to 64 MiB stays on one worker, a larger one spreads over many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

STRIPE_BYTES = 64 << 20
"""Part of the wire contract. The same 64 MiB as the longest read of the protocol and the largest page, so
that a page never lies across two owners; 3FS and AIStore spread big files in pieces of like size."""


@dataclass(frozen=True, slots=True)
class Stripe:
    """Bytes [start, stop) of a file, all within its stripe number `index`."""

    index: int
    start: int
    stop: int


def stripes(start: int, stop: int) -> Iterator[Stripe]:
    """Cuts [start, stop) at stripe borders, in order, no part empty; nothing for an empty range."""
    if not 0 <= start <= stop:
        raise ValueError(f"stripes: want 0 <= start <= stop, got start={start} stop={stop}")
    return _cut(start, stop)


def _cut(start: int, stop: int) -> Iterator[Stripe]:
    while start < stop:
        index = start // STRIPE_BYTES
        end = min(stop, (index + 1) * STRIPE_BYTES)
        yield Stripe(index, start, end)
        start = end


def stripe_key(path: str, index: int) -> bytes:
    """What placement hashes: the UTF-8 path, a NUL, the stripe number in decimal.

    `path` is the full `/mount/...` path. No valid path holds a NUL (`mount.normalize_path`), so no two
    pairs share a key. The version is left out on purpose: a new version stays with the same owners.
    """
    return b"%b\0%d" % (path.encode("utf-8", "surrogatepass"), index)
