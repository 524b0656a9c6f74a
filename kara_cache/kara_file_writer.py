"""Files of the fsspec face that are being written: a new version, seen when it is complete."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from fsspec.compression import compr

from kara_cache.ufs.base import UnderStoreWriter

if TYPE_CHECKING:
    from types import TracebackType

    from kara_cache.filesystem import KaraFileSystem

logger = logging.getLogger(__name__)


class KaraFileWriter(io.RawIOBase):
    """A new version of a file, visible as a whole when it is closed.

    It is discarded instead when its `with` block ends by an exception, when it is closed while an
    exception that began after `open` is being handled (text and compressed files and
    `fsspec.open` hide the former behind a plain `close()`), and, with a warning, when nobody
    closed it. With `autocommit=False` closing decides nothing: `commit` or `discard` do, as the
    end of `fs.transaction` calls them.
    """

    def __init__(
        self, fs: KaraFileSystem, path: str, mode: str, writer: UnderStoreWriter, *, autocommit: bool = True
    ) -> None:
        super().__init__()
        self.fs = fs
        self.path = path
        self.mode = mode
        self.autocommit = autocommit
        self.blocksize = fs.blocksize
        self._writer: UnderStoreWriter | None = writer
        self._position = 0
        self._exception_at_open = sys.exc_info()[1]

    def write(self, data: Any) -> int:  # Any: the buffer protocol has no name before Python 3.12
        if self.closed or self._writer is None:
            raise ValueError(f"write to closed file {self.path}")
        view = memoryview(data).cast("B")
        self._writer.write(view)
        self._position += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written through this object; in append mode the store knows the rest."""
        return self._position

    @property
    def loc(self) -> int:
        return self._position

    @property
    def full_name(self) -> str:
        return self.fs.unstrip_protocol(self.path)

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if not self.autocommit:
            return
        exception = sys.exc_info()[1]
        if exception is None or exception is self._exception_at_open:
            self.commit()
        else:
            logger.warning("%s not written: closed while %r was being handled", self.path, exception)
            self.discard()

    def commit(self) -> None:
        """Makes the content visible; a second call does nothing."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with writer:  # a commit that fails aborts
                writer.commit()
            self.fs.invalidate_cache(self.path)

    def discard(self) -> None:
        """Leaves the file as it was before `open`; does nothing after `commit`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
            return
        self.discard()
        super().close()

    def __del__(self) -> None:
        if getattr(self, "_writer", None) is None:
            return
        # a checkpoint cut short by an exception must not replace the good one when it is collected
        self.discard()
        super().close()
        message = (
            f"{self.path} not written: the file was never {'closed' if self.autocommit else 'committed'}"
        )
        logger.warning("%s", message)
        warnings.warn(message, ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> str:
        raise TypeError(f"cannot pickle {self!r}: a file being written belongs to one process")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._position} bytes so far"
        return f"<KaraFileWriter {self.path} {state}>"


class CompressedWriter(io.RawIOBase):
    """Compresses into a `KaraFileWriter`, and ends as it does.

    Python's and fsspec's compressed files do not close the file that they write to.
    """

    def __init__(self, file: KaraFileWriter, codec: str) -> None:
        super().__init__()
        self._file = file
        self._compressed = compr[codec](file, mode="w")

    def write(self, data: Any) -> int:  # Any: the buffer protocol has no name before Python 3.12
        return int(self._compressed.write(data))

    def tell(self) -> int:
        """Bytes before compression."""
        return int(self._compressed.tell())

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._compressed.close()
            self._file.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
            return
        super().close()
        with contextlib.suppress(OSError, ValueError):  # what went wrong is known already
            self._compressed.close()
        self._file.__exit__(exc_type, exc, traceback)

    def __del__(self) -> None:
        """Leaves the file to its own `__del__`: who did not close did not finish."""
