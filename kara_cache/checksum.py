"""The one checksum of pages, ranges and headers: xxh3, 64 bits.

Not keyed: it finds accidents of disks, memory and networks, not forgery. Chosen by measurement:
17 us for 1 MiB against 40 for crc32c and 249 for zlib.crc32, so that verifying every read costs 7 %.
"""

from __future__ import annotations

from collections.abc import Callable

from xxhash import xxh3_64_intdigest

Buffer = bytes | bytearray | memoryview


checksum: Callable[[Buffer], int] = xxh3_64_intdigest
"""xxh3_64 with seed 0, as an unsigned 64-bit integer. The library's own: a call around it took 0.1 us."""


__all__ = ["Buffer", "checksum"]
