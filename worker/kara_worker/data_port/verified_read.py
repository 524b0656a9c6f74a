"""Bytes of an open page, compared with the checksums of its fill before anybody gets them."""

from __future__ import annotations

import errno
import os
from time import monotonic

from kara_cache.checksum import checksum
from kara_cache.errors import PageCorrupt
from kara_worker.pages.page_store import StoredPage

_NO_WAIT = getattr(os, "RWF_NOWAIT", 0)
_MOMENT_S = 0.25  # two probes cost 2 us, as much as all that is done in Python for a large page
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def read_verified(
    stored: StoredPage, start: int, stop: int, scratch: memoryview, *, wait: bool
) -> memoryview:
    """Bytes [start, stop) of the page, as a part of `scratch` (at least a page long).

    Raises BlockingIOError when `wait` is False and the disk would have to be read (file systems that
    cannot tell count as memory: tmpfs), PageCorrupt when the bytes are not those of the fill.
    """
    header = stored.header
    length, step = header.length, header.block_bytes
    if start == 0 and stop == length:
        first, last = 0, length
    else:  # the blocks around it; without calls, for it is done for each range of a batch
        first, last = start - start % step, min(-(-stop // step) * step, length)
    size = last - first
    view = scratch[:size]
    got = _read(stored.fd, view, stored.offset + first, wait)
    if got != size:
        if not wait and got > 0:
            raise BlockingIOError(errno.EAGAIN, "partly in memory")
        raise PageCorrupt(f"page {header.page}: {got} bytes at {first}, expected {size}")
    if size == length:
        good = checksum(view) == header.page_sum
    elif 0 < size <= step:
        good = checksum(view) == header.block_sums[first // step]
    else:
        good = header.verify_blocks(view, first)
    if not good:
        raise PageCorrupt(f"page {header.page}: bytes {first} to {last} differ from their checksum")
    return view[start - first : stop - first]


def read_verified_copy(stored: StoredPage, start: int, stop: int) -> bytes:
    """The same into memory of its own, waiting for the disk: for threads."""
    return bytes(read_verified(stored, start, stop, memoryview(bytearray(stored.header.length)), wait=True))


def _read(fd: int, view: memoryview, offset: int, wait: bool) -> int:
    if not wait and _NO_WAIT:
        try:
            return os.preadv(fd, (view,), offset, _NO_WAIT)
        except BlockingIOError:
            raise
        except OSError as exc:
            if exc.errno not in _UNSUPPORTED:
                raise PageCorrupt(f"read of {len(view)} bytes at {offset}: {exc}") from exc
    done = 0
    try:
        while done < len(view) and (count := os.preadv(fd, [view[done:]], offset + done)):
            done += count
    except OSError as exc:
        raise PageCorrupt(f"read of {len(view)} bytes at {offset}: {exc}") from exc
    return done


def in_memory(stored: StoredPage) -> bool:
    """Whether sendfile of the page would probably not wait for a disk: first and last byte are resident,
    or were a moment ago. The kernel reclaims what was not used for long, so a page in use stays."""
    now = monotonic()
    if now < stored.in_memory_until or not _NO_WAIT:
        return True
    probe = bytearray(1)
    try:
        os.preadv(stored.fd, [probe], stored.offset, _NO_WAIT)
        os.preadv(stored.fd, [probe], stored.offset + stored.header.length - 1, _NO_WAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    stored.in_memory_until = now + _MOMENT_S
    return True
