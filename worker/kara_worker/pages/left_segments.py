"""Segments in a directory whose pages lie in files of their own now: what they are called, and their end."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from kara_worker.pages.page_directory import PageDirectory

log = logging.getLogger(__name__)

FOLDER = "segments"
SUFFIX = ".seg"


def remove_left_segments(home: PageDirectory) -> None:
    """Their pages come from the stores again; their room is ours. What cannot be removed, the log tells."""
    try:
        if count := _remove(f"{home.root}/{FOLDER}"):
            log.info("page directory %s: removed %d files of segments", home.root, count)
    except OSError as exc:
        log.warning("page directory %s: segments are in the way: %s", home.root, exc)


def _remove(folder: str) -> int:
    count = 0
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            kind, _, rest = name.partition(".")
            if name.endswith(SUFFIX) or (kind in ("index", "journal") and rest):
                os.unlink(f"{folder}/{name}")
                count += 1
        os.rmdir(folder)
    return count
