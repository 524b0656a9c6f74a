"""A file on this machine's own disk, replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write in place of `path`, which changes only when the block ends without an exception.

    Parents are made. The content goes to a hidden file beside the target, which must be on the same
    file system for the rename; a link is followed, so that it still is one afterwards. What is no
    regular file (`/dev/stdout`, a pipe) is written directly.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
        with open(target, "wb") as direct:
            yield direct
        return
    directory, name = os.path.split(target)
    os.makedirs(directory, exist_ok=True)
    # a name of 255 bytes is the limit of ext4 and xfs; the target's own may be that long
    part = os.path.join(directory, f".{name[:64]}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as out:
            yield out
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
