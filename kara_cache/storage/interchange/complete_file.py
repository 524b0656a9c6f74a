"""A file that appears under its name when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(target: str) -> Iterator[Path]:
    """A path to write to, beside `target`; it takes the name of `target` at the end of the block.

    After an exception nothing is left. Raises FileExistsError where something came to `target` meanwhile.
    """
    place = Path(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        yield partial
        os.link(partial, place)  # unlike a rename, it replaces nothing
    finally:
        partial.unlink(missing_ok=True)
