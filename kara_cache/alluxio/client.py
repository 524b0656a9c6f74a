"""`AlluxioClient` as alluxiofs 1.0.17 has it: full urls in, bytes, statuses and load jobs out."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kara_cache.alluxio.load_report import LoadReport
from kara_cache.alluxio.loads import ClusterLoads, Loads, NativeLoads
from kara_cache.alluxio.operation_options import CPOption, RMOption
from kara_cache.alluxio.options import read_options
from kara_cache.alluxio.path_status import AlluxioPathStatus
from kara_cache.alluxio.tree import AlluxioTree
from kara_cache.kara_url import scheme_of
from kara_cache.load_job import LoadState

_logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
_POLL_FIRST_S = 0.05  # a small load is over before; alluxiofs looks every 10 s
_POLL_MOST_S = 2.0


class AlluxioClient:
    """Files and load jobs by the full urls of their store, `s3://bucket/key`. Thread-safe.

    What is missing or forbidden is FileNotFoundError or PermissionError; nothing waits for ever.
    A file system that also falls back to the store itself is `AlluxioFileSystem`.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        *,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        **options: Any,  # checked by `read_options`
    ) -> None:
        """With neither `etcd_hosts` nor `worker_hosts`, this user's private worker.

        Args:
            target_protocol: Scheme of a store that may be read directly when no worker answers, and
                that a private worker reaches with
            target_options: these options, in the words of the store's own fsspec class.
            options: Keywords of alluxiofs 1.0.17 and of `ClientConfig`; anything else is a ConfigError.
        """
        given = read_options(options)
        if target_protocol is not None:
            given.stores[target_protocol] = dict(target_options or {})
        self._connect(AlluxioTree(given), logger)

    @classmethod
    def over(cls, files: AlluxioTree, logger: logging.Logger | None = None) -> AlluxioClient:
        """The client of a filesystem that exists."""
        client = cls.__new__(cls)
        client._connect(files, logger)
        return client

    def _connect(self, files: AlluxioTree, logger: logging.Logger | None) -> None:
        self.logger = logger or _logger
        self._files = files
        self._loads: Loads = ClusterLoads(files) if files.cluster is None else NativeLoads(files)

    def __repr__(self) -> str:
        return f"<AlluxioClient {self._files!r}>"

    # -- looking -----------------------------------------------------------------------------------

    def listdir(self, path: str) -> list[AlluxioPathStatus]:
        """A directory's children, or of a file the file itself."""
        return self._files.statuses(_url(path))

    def get_file_status(self, path: str) -> AlluxioPathStatus:
        return self._files.status(_url(path))

    # -- loading -----------------------------------------------------------------------------------

    def submit_load(self, path: str, verbose: bool = True) -> bool:
        """Begins to bring a file, or everything below a directory, into the cache. True: it was taken."""
        return self._loads.submit(_url(path), verbose=verbose)

    def load_progress(self, path: str, verbose: bool = True) -> LoadReport:
        """The state of the path's last load: FAILED where nobody ever asked for one.

        >>> progress = client.load_progress("s3://bucket/train")  # doctest: +SKIP
        >>> progress == LoadState.SUCCEEDED  # doctest: +SKIP
        True
        """
        return self._loads.progress(_url(path), verbose=verbose)

    def stop_load(self, path: str) -> bool:
        """False where there is no such job. What is loaded stays."""
        return self._loads.stop(_url(path))

    def load(
        self,
        path: str,
        timeout: float | None = None,
        verbose: bool = True,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> bool:
        """Loads and waits. Whether all of it is there, within `timeout` seconds if given.

        After the timeout the job goes on by itself.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if not self.submit_load(path, verbose=verbose):
            return False
        pause_s = _POLL_FIRST_S
        while True:
            progress = self.load_progress(path, verbose=verbose)
            if progress.state is LoadState.SUCCEEDED:
                return True
            if progress.state.final:
                self.logger.error("load of %s: %s, %s", path, progress.name, progress.content.get("message"))
                return False
            left_s = pause_s if end is None else end - time.monotonic()
            if left_s <= 0:
                self.logger.warning("load of %s: %s after %s s", path, progress.name, timeout)
                return False
            sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _POLL_MOST_S)

    # -- reading -----------------------------------------------------------------------------------

    def read(self, file_path: str) -> bytes:
        return self._files.cat_file(_url(file_path))

    def read_range(self, file_path: str, offset: int, length: int | None) -> bytes:
        """`length` bytes from `offset`, fewer at the end of the file; None or -1 for all that follow."""
        if not isinstance(offset, int) or offset < 0:
            raise ValueError(f"offset: want 0 or more, got {offset!r}")
        if length is None or length == -1:
            return self._files.cat_file(_url(file_path), offset)
        if not isinstance(length, int) or length < 0:
            raise ValueError(f"length: want 0 or more, -1 or None, got {length!r}")
        return self._files.cat_file(_url(file_path), offset, offset + length)

    def read_file_range(self, file_path: str, offset: int = 0, length: int = -1) -> bytes:
        return self.read_range(file_path, offset, length)

    def read_chunked(self, file_path: str, chunk_size: int = CHUNK_BYTES) -> io.BytesIO:
        """The whole file. `chunk_size` changes nothing: how bytes travel is the client's business."""
        return io.BytesIO(self.read(file_path))

    def read_batch(self, paths: Sequence[str], chunk_size: int = CHUNK_BYTES) -> list[bytes]:
        """All files, in the order of the paths; raises for the first that cannot be read."""
        urls = [_url(path) for path in paths]
        return self._files.cat_ranges(urls, None, None, on_error="raise")

    read_batch_threaded = read_batch

    def head(self, file_path: str, num_of_bytes: int = 1024) -> bytes:
        return self._files.cat_file(_url(file_path), 0, num_of_bytes)

    def tail(self, file_path: str, num_of_bytes: int = 1024) -> bytes:
        return self._files.cat_file(_url(file_path), -num_of_bytes) if num_of_bytes else b""

    # -- changing ----------------------------------------------------------------------------------

    def write(self, file_path: str, file_bytes: bytes) -> bool:
        """Replaces the file as a whole."""
        self._files.pipe_file(_url(file_path), file_bytes)
        return True

    def write_chunked(
        self, file_path: str, file_bytes: bytes | Iterable[bytes], chunk_size: int = CHUNK_BYTES
    ) -> bool:
        """`write`; the bytes may also come in pieces."""
        pieces = (file_bytes,) if isinstance(file_bytes, (bytes, bytearray, memoryview)) else file_bytes
        with self._files.open(_url(file_path), "wb") as file:
            for piece in pieces:
                file.write(piece)
        return True

    def write_page(self, file_path: str, page_index: int, page_bytes: bytes) -> bool:
        """Only a real Alluxio cluster takes a page; files of this cache are replaced as a whole."""
        cluster = self._files.cluster
        if cluster is None:
            raise io.UnsupportedOperation(f"{file_path}: a file is replaced as a whole, see write")
        cluster.write_page(_url(file_path), page_index, page_bytes)
        return True

    def mkdir(self, file_path: str) -> bool:
        self._files.makedirs(_url(file_path), exist_ok=True)
        return True

    def touch(self, file_path: str) -> bool:
        """Makes an empty file; an existing one becomes empty."""
        self._files.touch(_url(file_path))
        return True

    def mv(self, path1: str, path2: str) -> bool:
        self._files.move_all(_url(path1), _url(path2))
        return True

    def rm(self, path: str, option: RMOption | None = None) -> bool:
        """By default as in alluxiofs: the cached pages go, the file in the store stays.

        `RMOption(remove_alluxio_only=False)` deletes the file.
        """
        self._files.remove(_url(path), option or RMOption())
        return True

    def cp(self, path1: str, path2: str, option: CPOption | None = None) -> bool:
        self._files.copy_all(_url(path1), _url(path2), option or CPOption())
        return True

    def close(self) -> None:
        """Closes connections; the next use opens new ones."""
        self._files.close()


def _url(path: str) -> str:
    """Raises TypeError, ValueError. A kara path, /mount/rest, is as good as a url."""
    if not isinstance(path, str):
        raise TypeError(f"path: want a string, got {type(path).__name__}")
    if scheme_of(path) is None and not path.startswith("/"):
        raise ValueError(f"path {path!r}: want a full url of the store, protocol://path")
    return path
