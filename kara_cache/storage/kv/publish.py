"""A table becomes a row data set that everybody can read, with its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress

from kara_cache.serialization import NoSerializer
from kara_cache.storage.kara_storage import KaraStorage
from kara_cache.storage.kv.row_table import RowTable
from kara_cache.storage.kv.transaction import TransactionConflict
from kara_cache.storage.location import Location
from kara_cache.storage.rows.row_keys import PLACE, write_row_keys
from kara_cache.storage.rows.row_options import MAX_FILE_BYTES
from kara_cache.storage.rows.row_version import RowVersion
from kara_cache.storage.rows.row_writer import RowWriter, open_writer

_MARK = "publishing"
Progress = Callable[[int, int | None], None]


def publish(
    table: RowTable,
    storage: KaraStorage,
    namespace: str,
    key: str,
    version: object,
    *,
    progress: Progress | None = None,
    max_file_size: int = MAX_FILE_BYTES,
) -> int:
    """Freezes the table as a new version of a row data set, and returns the number of rows.

    In the version `dataset["id"]` is the row of that key, and `dataset[3]` the one at that position. The
    version is seen, and becomes the latest, when all rows and keys are durable, and not before. What a
    publication that was killed left behind is removed when it is done again. Writers of the table wait.

    Args:
        progress: Called with the rows so far and how many there are.
        max_file_size: Bytes of a segment of rows.

    Raises:
        FileExistsError: the version exists, or somebody's rows are at its place.
        BlockingIOError: somebody else writes this version.
        TransactionConflict: the table is open to read and was written to meanwhile; do it again.
    """
    found = RowVersion.find(storage.location, namespace, key, version, "w")
    if found.is_published():
        raise FileExistsError(f"{found}: published already, and versions do not change; choose another name")
    hidden = _HiddenVersion(found.location, found.namespace, found.key, found.name)
    table.flush()
    with table.batch() if table.db.writable else nullcontext():
        state = table.db.environment.last_transaction()
        with _Publication(hidden, max_file_size) as publication:
            count = publication.write(_counted(table.serialized_items(), len(table), progress))
        if not table.db.writable and table.db.environment.last_transaction() != state:
            raise TransactionConflict(f"{table.db.path}: was written to while it was published; do it again")
    found.publish()
    _delete(found.location, f"{found.directory}/{_MARK}")
    return count


class _HiddenVersion(RowVersion):
    """A version that its writer does not show to anybody."""

    def publish(self) -> None:
        pass

    def is_published(self) -> bool:
        return False


class _Publication:
    """Writes rows and keys to a place that is empty, or holds the rest of another publication."""

    def __init__(self, version: RowVersion, max_file_bytes: int) -> None:
        self._version = version
        self._max_file_bytes = max_file_bytes

    def write(self, items: Iterable[tuple[str, bytes]]) -> int:
        append = self._writer.appender(NoSerializer())

        def keys() -> Iterator[str]:
            for key, content in items:
                append(content)
                yield key

        path = "/".join((self._version.directory, *PLACE))
        return write_row_keys(self._version.location.store, path, keys())

    def __enter__(self) -> _Publication:
        self._clear_rest()
        self._version.location.store.write(f"{self._version.directory}/{_MARK}", b"")
        self._writer: RowWriter = open_writer(self._version, self._max_file_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _clear_rest(self) -> None:
        location, directory = self._version.location, self._version.directory
        found = _files(location, directory)
        if not found:
            return
        if f"{directory}/{_MARK}" not in found:
            raise FileExistsError(
                f"{self._version}: {len(found)} files that no publication wrote, such as {found[0]}"
            )
        open_writer(self._version, self._max_file_bytes).close()  # refused while somebody writes here
        for path in _files(location, directory):
            if not path.endswith(f"/{_MARK}"):
                _delete(location, path)


def _counted(
    items: Iterator[tuple[str, bytes]], count: int, progress: Progress | None
) -> Iterator[tuple[str, bytes]]:
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(done, count)


def _files(location: Location, directory: str) -> list[str]:
    try:
        return [file.path for file in location.store.list(directory, recursive=True)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _delete(location: Location, path: str) -> None:
    with suppress(FileNotFoundError):
        location.store.delete(path)
