"""Names, listings and file facts of the fsspec face; bytes are read and written in `filesystem.py`."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from glob import has_magic
from typing import Any, ClassVar

import fsspec
from fsspec.registry import known_implementations
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate, stringify_path, tokenize

from kara_cache.attachment import Attachment
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import ConfigError, KaraError
from kara_cache.kara_url import NameSpace, rebase, strip_kara
from kara_cache.ufs.base import FileInfo

# Older ones give the path of a chained url to fsspec's caches only, and 2025.10 takes plain urls for chained.
CHAINS = tuple(map(int, fsspec.__version__.split(".")[:2])) >= (2025, 12)
if CHAINS:
    from fsspec.implementations.chained import ChainedFileSystem
else:
    ChainedFileSystem = AbstractFileSystem


Keep = Callable[[str], bool]


class KaraTree(ChainedFileSystem):
    """Files of the stores, read through the cache.

    Args:
        target_protocol: Scheme of the store that names belong to ("s3"); set by `kara::s3://...`.
            Without it names are kara paths.
        target_options: The caller's own options for that store. They let reads that no worker
            can answer go to the store itself; a private worker needs them to reach it at all.
        use_listings_cache: Keep listings of this instance until `invalidate_cache`, a write
            through it, or `listings_expiry_time` seconds. Off unless asked for: another process
            may add files at any time, and workers answer listings quickly.
        options: Every key of `ClientConfig`, and options of stores by scheme (`s3={...}`), which is how
            fsspec passes what stands beside `kara={...}`. Anything else is a ConfigError.

    Sync, thread-safe and usable after `fork()`. Instances with the same options share one
    `CacheClient` per process, also across threads, where fsspec makes an instance for each.

    What methods raise: FileNotFoundError, PermissionError and the like are the store's answers;
    `AccessDenied`, that the cache refused us; `UnderStoreError` and `WorkerUnavailable`, that nobody
    could answer.
    """

    protocol: ClassVar[str] = "kara"
    _strip_tokenize_options = ("fo",)  # one instance for all files of a store
    _attachments: ClassVar[dict[Hashable, Attachment]] = {}

    def __init__(
        self,
        *,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        fo: str | None = None,
        asynchronous: bool = False,
        use_listings_cache: bool = False,
        listings_expiry_time: float | None = None,
        max_paths: int | None = None,
        **options: Any,  # checked against ClientConfig below
    ) -> None:
        """`fo` (a path) and `asynchronous` are what fsspec's chaining and zarr pass; they change nothing."""
        super().__init__(
            use_listings_cache=use_listings_cache,
            listings_expiry_time=listings_expiry_time,
            max_paths=max_paths,
        )
        if fo is not None and not CHAINS:
            raise ConfigError("kara::<url> needs fsspec 2025.12 or newer; kara://<url> works with any")
        self._names = NameSpace(target_protocol)
        stores = {key: options.pop(key) for key in list(options) if _is_of_a_store(key, options[key])}
        stores.pop("hf", None)  # datasets hands its hub's options to every filesystem
        if self._names.scheme is not None:
            stores[self._names.scheme] = target_options or {}
        config = ClientConfig.load(**options)
        self._attachment = self._attachments.setdefault(
            (config, tokenize(stores)), Attachment(config, stores=stores)
        )
        # the spelling of a path depends on the instance, but fsspec also asks the class
        self._strip_protocol = self._strip  # type: ignore[method-assign]

    @property
    def client(self) -> CacheClient:
        """The cache below; shared by every instance with these options."""
        return self._attachment.client

    @property
    def fsid(self) -> str:
        config = self._attachment.config
        where = (config.cluster_name, config.etcd.hosts, config.worker_hosts, self._names.scheme)
        return f"kara_{tokenize(where)}"

    def close(self) -> None:
        """Closes the client that instances with these options share; the next use opens a new one."""
        self._attachment.close()

    def __repr__(self) -> str:
        what, config = self._names.scheme or "mounts", self._attachment.config
        return f"<{type(self).__name__} {what} of {config.cluster_name}>"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Of the class: what fsspec asks before there is an instance, when it takes a url apart."""
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return strip_kara(stringify_path(path))

    def _strip(self, path: Any) -> Any:
        """Of an instance: the name of a path in any spelling, or of a list of them."""
        if isinstance(path, list):
            return [self._strip(item) for item in path]
        return self._names.name(stringify_path(path))

    def unstrip_protocol(self, name: str) -> str:
        """The url that `fsspec.open` takes, with the same options, for a name or path."""
        return self._names.unstrip(self._strip(name))

    def _parent(self, path: Any) -> str:
        return self._names.parent(self._strip(path))

    def kara_path(self, path: str) -> str:
        """The full path above the mount table, which is what the CLI, logs and errors speak of."""
        return self._kara_path(self._strip(path))

    def _kara_path(self, name: str) -> str:
        url = self._names.url(name)
        if url is not None:
            return self._attachment.kara_path(url)
        self._attachment.know_mounts()
        return f"/{name}"

    def entry(self, file: FileInfo, name: str) -> dict[str, Any]:
        """fsspec's dict of one file: `mtime` and `created` in seconds since the epoch.

        A version is written once, so the time it was modified is the time it was created.
        """
        if file.is_dir:
            return {"name": name, "size": 0, "type": "directory"}
        entry = {"name": name, "size": file.size, "type": "file", "mtime": file.mtime, "created": file.mtime}
        if file.version:
            entry |= {"version": file.version, "ETag": file.version}
        return entry

    def file_info(self, path: str) -> FileInfo:
        """Size and version now, under the mount's freshness rule; never from the listings cache."""
        return self.client.info(self.kara_path(path))

    def info(self, path: str, *, refresh: bool = False) -> dict[str, Any]:
        name = self._strip(path)
        found = None if refresh else self._ls_from_cache(name)
        for entry in found or ():
            if entry["name"] == name:
                return dict(entry)
        return self.entry(self.file_info(name), name)

    def ls(self, path: str, detail: bool = True, *, refresh: bool = False) -> list[Any]:
        name = self._strip(path)
        entries = None if refresh else self.dircache.get(name)
        if entries is None:
            if not self.dircache.use_listings_cache:
                found = self._listed(name)
                return [self.entry(file, below) if detail else below for below, file in found]
            entries = [self.entry(file, below) for below, file in self._listed(name)]
            if [entry["name"] for entry in entries] != [name]:
                self.dircache[name] = entries
        return [dict(entry) for entry in entries] if detail else [entry["name"] for entry in entries]

    def _listed(self, name: str, *, recursive: bool = False) -> Iterator[tuple[str, FileInfo]]:
        """What is in a directory, or all files below it, with their names, as the workers send it."""
        base = self._kara_path(name)
        for file in self.client.list(base, recursive=recursive):
            yield rebase(file.path, base, name), file

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        *,
        empty_dirs: bool = True,
        refresh: bool = False,
        keep: Keep | None = None,
    ) -> Any:
        """Every file below, by one streamed listing where nothing more is asked for.

        With `withdirs` and `empty_dirs=False` directories are those that files are in. `keep` says of each
        name, with a slash behind a directory's, whether it is worth remembering.
        """
        one_level = maxdepth == 1
        if self.dircache.use_listings_cache or not (
            one_level or (maxdepth is None and not (withdirs and empty_dirs))
        ):
            return super().find(path, maxdepth, withdirs, detail, refresh=refresh)
        name = self._strip(path)
        found: dict[str, Any] = {}  # a million names are enough: what nobody asked for is not made
        seen = set[str]()  # directories
        with contextlib.suppress(FileNotFoundError):  # nothing there is nothing found, as in fsspec
            for below, file in self._listed(name, recursive=not one_level):
                if withdirs:
                    seen.update(self._new_above(below, name, seen))
                if file.is_dir:
                    seen.add(below)
                elif keep is None or keep(below):
                    found[below] = self.entry(file, below) if detail else None
            if one_level and name not in found:
                seen.add(name)  # also of an empty directory, as in fsspec
        for directory in seen - {""} if withdirs else ():
            if keep is None or keep(directory + "/"):
                found[directory] = {"name": directory, "size": 0, "type": "directory"}
        if not _ascend(found):
            found = dict(sorted(found.items()))
        return found if detail else list(found)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """As in fsspec, except that `**` matches no directory without files in it.

        That makes it one listing of everything below instead of one for each directory. Of a large
        directory only what matches is remembered.
        """
        if has_magic(stringify_path(path)):
            if "**" in path and maxdepth is None:
                kwargs["empty_dirs"] = False
            kwargs["keep"] = self._matching(stringify_path(path))
        return super().glob(path, maxdepth, **kwargs)

    def _matching(self, path: str) -> Keep:
        """Whether fsspec's `glob` may want a name; it has the last word."""
        matches = re.compile(glob_translate(self._strip(path))).match
        return lambda name: bool(matches(name) or (name.endswith("/") and matches(name[:-1])))

    def _new_above(self, name: str, top: str, seen: set[str]) -> Iterator[str]:
        """Directories that `name` is in and that are not in `seen`; those above one that is, are in it."""
        for above in self._above(name, top):
            if above in seen:
                return
            yield above

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: str | Callable[[OSError], Any] = "omit",
        *,
        detail: bool = False,
        refresh: bool = False,
    ) -> Iterator[tuple[str, Any, Any]]:
        """As in fsspec, except that "omit" leaves out what is missing or forbidden and nothing else.

        A listing with holes where the store failed, or the cache refused us, would pass for the whole.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError(f"maxdepth must be at least 1, got {maxdepth}")
        name = self._strip(path)
        try:
            entries = self.ls(name, detail=True, refresh=refresh)
        except OSError as error:
            if callable(on_error):
                on_error(error)
            elif on_error == "raise" or isinstance(error, KaraError):
                raise
            return
        below = {entry["name"].rsplit("/", 1)[-1]: entry for entry in entries if entry["name"] != name}
        directories: Any = {key: entry for key, entry in below.items() if entry["type"] == "directory"}
        files: Any = {key: entry for key, entry in below.items() if entry["type"] != "directory"}
        if len(below) < len(entries):  # of a file, the listing is itself
            files[""] = entries[0]
        if not detail:
            directories, files = list(directories), list(files)
        if topdown:
            yield name, directories, files
        if maxdepth is None or maxdepth > 1:
            deeper = None if maxdepth is None else maxdepth - 1
            for key in directories:
                child = below[key]["name"] if key in below else f"{name}/{key}"
                yield from self.walk(child, deeper, topdown, on_error, detail=detail, refresh=refresh)
        if not topdown:
            yield name, directories, files

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> Any:
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: entry.get("size", 0) for name, entry in found.items()}
        return sum(sizes.values()) if total else sizes

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether something is there; a store that cannot say raises, which fsspec would call False."""
        try:
            self.info(path, **kwargs)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        return self._is("directory", path)

    def isfile(self, path: str) -> bool:
        return self._is("file", path)

    def checksum(self, path: str) -> int:
        """Differs when the version differs."""
        return int(self.ukey(path)[:16], 16)

    def ukey(self, path: str) -> str:
        file = self.file_info(path)
        identity = (file.path, file.size, file.version or file.mtime)
        return hashlib.sha256(repr(identity).encode()).hexdigest()

    def modified(self, path: str) -> datetime:
        """UTC. NotImplementedError where the store does not tell."""
        file = self.file_info(path)
        if file.mtime is None:
            raise NotImplementedError(f"{file.path}: the store reports no modification time")
        return datetime.fromtimestamp(file.mtime, tz=timezone.utc)

    created = modified

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        raise NotImplementedError(f"{path}: a cache holds no credentials to sign urls with; ask the store")

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forgets listings: all of them, or those that `path` is or may be in and those below it."""
        super().invalidate_cache(path)
        if path is None:
            self.dircache.clear()
            return
        name = self._strip(path)
        stale = {name, *self._above(name, self._names.root)}
        for listed in list(self.dircache):
            if listed in stale or listed.startswith(name + "/"):
                self.dircache.pop(listed, None)

    def _above(self, name: str, top: str) -> Iterator[str]:
        """The directories that `name` is in, innermost first, down to and with `top`."""
        while name != top:
            parent = self._names.parent(name)
            if parent == name:
                return
            yield parent
            name = parent

    def _is(self, kind: str, path: str) -> bool:
        try:
            return bool(self.info(path)["type"] == kind)
        except (FileNotFoundError, NotADirectoryError):
            return False


def _ascend(names: Iterable[str]) -> bool:
    last = ""
    for name in names:
        if name < last:
            return False
        last = name
    return True


def _is_of_a_store(key: str, value: object) -> bool:
    return key in known_implementations and isinstance(value, Mapping)
