"""Uploads in parts that somebody has begun and not completed, and how a writer goes on with one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial

from kara_cache.errors import KaraError
from kara_cache.ufs.object_api import ObjectApi, PartFacts, UploadFacts
from kara_cache.ufs.object_retries import Retries
from kara_cache.ufs.object_writer import EarlierUpload, ObjectWriter, abort_upload
from kara_cache.ufs.resumable import ABANDONED_S, UploadGone

_NOTHING = EarlierUpload("", {})

logger = logging.getLogger(__name__)


class UnfinishedUploads:
    """`Unfinished` of a bucket. They are listed once, at first use.

    A store that does not list uploads (a gateway that cannot, credentials that may not) leaves nothing
    to go on with; that is logged and no error.
    """

    def __init__(
        self,
        api: ObjectApi,
        root: str,
        prefix: str,
        retries: Retries,
        go_on: Callable[[str, EarlierUpload], ObjectWriter],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`root` and `prefix` end in a slash, if not empty; `go_on` takes a path below `root`."""
        self._api = api
        self._root = root
        self._prefix = prefix
        self._retries = retries
        self._go_on = go_on
        self._clock = clock
        self._lock = threading.Lock()  # guards _found, held while it is asked for, and _used
        self._found: dict[str, list[UploadFacts]] | None = None
        self._used: set[str] = set()

    def open_writer(self, path: str) -> ObjectWriter:
        """Goes on with the upload that has most of the file."""
        earlier = [self._parts(upload) for upload in self._uploads().get(self._root + path, ())]
        most = max(earlier, key=lambda upload: sum(p.size for p in upload.parts.values()), default=_NOTHING)
        with self._lock:
            self._used.add(most.id)
        return self._go_on(path, most)

    def clear(self, finished: Collection[str]) -> int:
        """Uploads of other files are given up after a week: somebody may be sending them."""
        if not finished and self._found is None:
            return 0  # a listing is a request, and files that go up whole leave nothing behind
        complete = {self._root + path for path in finished}
        old = self._clock() - ABANDONED_S
        useless = [
            upload
            for key, uploads in self._uploads().items()
            for upload in uploads
            if upload.id not in self._used and (key in complete or upload.began_s < old)
        ]
        return sum(abort_upload(self._api, upload.key, upload.id, self._retries) for upload in useless)

    def _uploads(self) -> dict[str, list[UploadFacts]]:
        with self._lock:
            if self._found is None:
                self._found = self._listed()
            return self._found

    def _listed(self) -> dict[str, list[UploadFacts]]:
        found: dict[str, list[UploadFacts]] = {}
        marker: tuple[str, str] | None = None
        try:
            while True:
                page = self._retries.run(partial(self._api.uploads, self._prefix, marker=marker))
                for upload in page.uploads:
                    found.setdefault(upload.key, []).append(upload)
                marker = page.next_marker
                if marker is None:
                    return found
        except (OSError, KaraError) as error:
            logger.warning("%s/%s: uploads cannot be gone on with: %s", self._api.url, self._prefix, error)
            return {}

    def _parts(self, upload: UploadFacts) -> EarlierUpload:
        parts: dict[int, PartFacts] = {}
        marker = 0
        try:
            while True:
                page = self._retries.run(partial(self._api.parts, upload.key, upload.id, marker=marker))
                parts.update((part.number, part) for part in page.parts)
                marker = page.next_marker
                if not marker:
                    return EarlierUpload(upload.id, parts)
        except UploadGone:
            return _NOTHING
        except (OSError, KaraError) as error:
            logger.warning("%s/%s: an upload cannot be gone on with: %s", self._api.url, upload.key, error)
            return _NOTHING
