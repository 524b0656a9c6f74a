"""Directories in a store: `obj/<namespace>/<key>`, as the published kara-storage 2.x writes and reads them.

obj/<namespace>/<key>/meta.json             which versions there are        (`storage.versions`)
obj/<namespace>/<key>/vers/<version>.json   which path has which blob       (`version_file`)
obj/<namespace>/<key>/data/<md5>_<sha1>     contents, each stored once      (`blob_store`)
"""

from __future__ import annotations

import os

from kara_cache.storage.location import Location
from kara_cache.storage.objects.blob_store import BlobStore
from kara_cache.storage.objects.catalog import Catalog, NoSuchVersion
from kara_cache.storage.objects.load import load_tree
from kara_cache.storage.objects.object_tree import Blob, FileEntry, ObjectTree
from kara_cache.storage.objects.progress import Bar
from kara_cache.storage.objects.save import hash_tree, upload_blobs
from kara_cache.storage.objects.source_tree import source_tree
from kara_cache.storage.objects.target_tree import TargetTree
from kara_cache.storage.objects.transfer_pool import TransferPool
from kara_cache.storage.objects.verify import Problem, Verdict, verify_local, verify_tree
from kara_cache.storage.versions import Versions

__all__ = [
    "Blob",
    "FileEntry",
    "NoSuchVersion",
    "ObjectTree",
    "Problem",
    "Verdict",
    "Versions",
    "list_files",
    "list_versions",
    "load_directory",
    "save_directory",
    "verify_directory",
]

_THREADS = (
    16  # a store answers in 10-50 ms, and a disk syncs in 1-10, so that small files need many at a time
)
_LOCAL_READS = 4  # reading local files waits for nothing; more threads only wait for each other
_BUDGET_BYTES = 256 << 20  # of memory for parts that are on their way


def save_directory(
    location: Location,
    namespace: str,
    key: str,
    local_path: str | os.PathLike[str],
    version: object = None,
    *,
    progress_bar: bool = True,
    verify: bool = False,
    threads: int | None = None,
) -> str:
    """Saves every file below `local_path` and returns the name of the version, which is the latest then.

    Contents that the store has already are not sent again, so a save that was interrupted goes on where
    it was, large files in the middle. Nobody sees any of it before all of it is there.

    Args:
        version: A name; None for the smallest number that is free; "latest" replaces the latest.
        progress_bar: "Hashing" and "Uploading" on stderr.
        threads: Things moved at a time; by default 16, or 4 for what is read from local files.
        verify: Reads the blobs that the store has already, and replaces those that are damaged.

    Raises:
        OSError: Something below `local_path` cannot be saved: a link that leads nowhere or in a circle, a
            FIFO, a file that may not be read or that changes meanwhile. Nothing was published.
        PermissionError: the location is read-only.
        NoSuchVersion: "latest" where there is none.
    """
    if not location.writable:
        raise PermissionError(f"{location.url} is read-only: nothing can be saved there")
    catalog, blobs = Catalog(location, namespace, key), BlobStore(location, namespace, key)
    name = catalog.check_name(version)
    source = source_tree(local_path)
    pool = TransferPool(threads or _THREADS, _BUDGET_BYTES)
    catalog.remove_abandoned()
    with Bar("Hashing", source.size, shown=progress_bar) as bar:
        tree, sources = hash_tree(source, pool, bar=bar)
    with Bar("Uploading", sum(blob.size for blob in sources), shown=progress_bar) as bar:
        upload_blobs(blobs, sources, pool, bar=bar, verify=verify)
    return catalog.publish(tree, name)


def load_directory(
    location: Location,
    namespace: str,
    key: str,
    local_path: str | os.PathLike[str],
    version: object = "latest",
    *,
    progress_bar: bool = True,
    delete: bool = False,
    threads: int | None = None,
) -> str:
    """Makes the files below `local_path` those of the version, and returns its name.

    Every file is checked against both digests before it gets its name; what is there already and right
    stays. A load that was interrupted goes on where it was, large files in the middle. Modes, times
    and empty directories are restored where the version has them.

    Args:
        delete: Also deletes every file below `local_path` that the version does not have. The published
            package always does; here what is not part of the version stays unless you ask.
        progress_bar: "Downloading" on stderr.

    Raises:
        NoSuchVersion: there is no such directory or version.
        FormatError: the version's file has paths that lead elsewhere (nothing was written), or a blob
            is missing or corrupt (its name is in the message; no file has its bytes).
        PermissionError, NotADirectoryError, IsADirectoryError: something is in the way of a path; nothing
            was written.
        BlockingIOError: another load is writing to `local_path`.
        OSError (ENOSPC): not enough space.
    """
    catalog = Catalog(location, namespace, key)
    name = catalog.find(version)
    tree = catalog.tree(name)
    with Bar("Downloading", tree.size, shown=progress_bar) as bar:
        load_tree(
            BlobStore(location, namespace, key),
            tree,
            TargetTree(local_path),
            _reading(location, threads),
            bar=bar,
            delete=delete,
        )
    return name


def verify_directory(
    location: Location,
    namespace: str,
    key: str,
    version: object = "latest",
    *,
    local_path: str | os.PathLike[str] | None = None,
    progress_bar: bool = True,
    threads: int | None = None,
) -> Verdict:
    """Reads every blob of a version, or with `local_path` the files of that directory, and compares digests.

    Raises NoSuchVersion, and FormatError for a damaged version file.
    """
    catalog = Catalog(location, namespace, key)
    name = catalog.find(version)
    tree = catalog.tree(name)
    if local_path is not None:
        target = TargetTree(local_path)
        with Bar("Verifying", tree.size, shown=progress_bar) as bar:
            return verify_local(
                target, name, tree, TransferPool(threads or _LOCAL_READS, _BUDGET_BYTES), bar=bar
            )
    with Bar("Verifying", sum(blob.size for blob in tree.blobs), shown=progress_bar) as bar:
        return verify_tree(
            BlobStore(location, namespace, key), name, tree, _reading(location, threads), bar=bar
        )


def list_versions(location: Location, namespace: str, key: str) -> Versions:
    """The names in the order they were first saved, and which one is the latest. Raises NoSuchVersion."""
    return Catalog(location, namespace, key).versions()


def list_files(location: Location, namespace: str, key: str, version: object = "latest") -> ObjectTree:
    """What a version has, without any of its contents. Raises NoSuchVersion and FormatError."""
    catalog = Catalog(location, namespace, key)
    return catalog.tree(catalog.find(version))


def _reading(location: Location, threads: int | None) -> TransferPool:
    if threads is None:
        threads = _THREADS if location.local is None else _LOCAL_READS
    return TransferPool(threads, _BUDGET_BYTES)
