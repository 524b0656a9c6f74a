"""Mounts: which kara path stands for which place in a store.

A kara path is `/mount/rest/of/path`: the first segment names a mount, the rest is the path below the
mount's URL. An operator writes the table; clients name mounts and never reach a store beyond them.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from kara_cache.errors import ConfigError
from kara_cache.quantity import parse_seconds

MAX_PATH_BYTES = 4096  # PATH_MAX of Linux; object keys are at most 1024 bytes
_MAX_NAME_CHARACTERS = 128
_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EMPTY_OR_DOTS = re.compile(r"/(?:\.{1,2}(?=/|\Z)|(?=/))")
_PASSWORD = re.compile(r"(?<=://)[^/]*:[^/]*@")
_ALIASES = {"local": "file", "s3a": "s3", "s3n": "s3", "gcs": "gs"}
_HOST_IN_LOWER_CASE = frozenset({"http", "https", "s3", "oss", "gs"})  # DNS names, or by the store's rules
_DEFAULT_PORT = {"http": ":80", "https": ":443"}


def normalize_path(path: str) -> str:
    """The one spelling of a kara path. Every path from outside goes through here, once.

    Legal is any absolute path of at most 4096 bytes of UTF-8, with spaces, `%`, `+`, `#`, `?` and what
    else object keys hold, taken literally: nothing is decoded and no case or Unicode form is changed.
    One slash at the end is dropped, since fsspec's callers write directories so. Nothing else is mended:
    an empty segment (`//`), `.`, `..` and control characters are refused, because stores, file systems
    and access rules disagree on what they mean.

    Raises ValueError.
    """
    if not path.startswith("/"):
        raise ValueError(f"path {_short(path)}: want an absolute path, /mount/...")
    if (bad := _CONTROL.search(path)) is not None:
        raise ValueError(f"path {_short(path)}: control character {bad[0]!r}")
    if (bad := _EMPTY_OR_DOTS.search(path)) is not None:
        what = f"segment {bad[0][1:]!r}" if bad[0] != "/" else "empty segment"
        raise ValueError(f"path {_short(path)}: {what} at character {bad.start()}")
    try:
        size = len(path) if path.isascii() else len(path.encode())
    except UnicodeEncodeError as exc:
        raise ValueError(f"path {_short(path)}: cannot be written as UTF-8") from exc
    if size > MAX_PATH_BYTES:
        raise ValueError(f"path {_short(path)}: {size} bytes, at most {MAX_PATH_BYTES}")
    return path[:-1] if path.endswith("/") and path != "/" else path


def is_below(path: str, prefix: str) -> bool:
    """Whether a normal path is `prefix` or lies below it, compared by whole segments; "/" is above all."""
    return path == prefix or prefix == "/" or (path.startswith(prefix) and path[len(prefix)] == "/")


@dataclass(frozen=True, slots=True)
class Freshness:
    """How long a file's known size and version are trusted, in seconds, before the store is asked again."""

    max_age_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_age_s >= 0:
            raise ValueError(f"freshness: want 0 or more seconds, got {self.max_age_s}")

    @classmethod
    def parse(cls, text: str) -> Freshness:
        """`revalidate` (ask at every open), `immutable` (never ask again) or `max_age=60s`.

        Raises ValueError.
        """
        if text == "revalidate":
            return REVALIDATE
        if text == "immutable":
            return IMMUTABLE
        kind, _, age = text.partition("=")
        if kind != "max_age":
            raise ValueError(f"freshness {text!r}: want revalidate, immutable or max_age=<duration>")
        return cls(parse_seconds(age))

    def trusts(self, age_s: float) -> bool:
        """Whether what was learnt `age_s` seconds ago may be used without asking."""
        return age_s < self.max_age_s

    def __str__(self) -> str:
        if self.max_age_s == 0:
            return "revalidate"
        return "immutable" if math.isinf(self.max_age_s) else f"max_age={self.max_age_s:g}s"


REVALIDATE = Freshness(0.0)
IMMUTABLE = Freshness(math.inf)


@dataclass(frozen=True, slots=True, repr=False)
class Mount:
    """One entry of the table. `repr` shows the names of its options, never their values."""

    name: str  # the first segment of its paths: letters, digits, ".", "_", "-"
    url: str  # root in the store, without credentials: it is shown to clients
    options: Mapping[str, Any] = field(
        default_factory=dict, hash=False
    )  # for the store; secrets by reference
    freshness: Freshness = REVALIDATE
    ttl_s: float | None = None  # pages older than this are dropped; None keeps them until evicted
    replicas: int = 1  # owners that keep a page; more spread the reads of hot files
    read_only: bool = False  # writes and deletes are refused
    quota_bytes: int | None = None  # most that its pages may take on each worker; None: all there is

    def __post_init__(self) -> None:
        if (
            not _NAME.fullmatch(self.name)
            or self.name in (".", "..")
            or len(self.name) > _MAX_NAME_CHARACTERS
        ):
            raise ConfigError(
                f"mount name {self.name[:_MAX_NAME_CHARACTERS]!r}: want 1 to {_MAX_NAME_CHARACTERS} "
                "letters, digits, '.', '_' or '-'"
            )
        if _PASSWORD.search(self.url):
            raise ConfigError(
                f"mount {self.name}: the URL holds a password; give it as an option, env:NAME or file:/path"
            )
        try:
            _locate(self.url)
        except ValueError as exc:
            raise ConfigError(f"mount {self.name}: {exc}") from exc
        if self.ttl_s is not None and not self.ttl_s > 0:
            raise ConfigError(f"mount {self.name}: ttl_s must be more than 0, got {self.ttl_s}")
        if self.quota_bytes is not None and self.quota_bytes < 1:
            raise ConfigError(f"mount {self.name}: quota_bytes must be at least 1, got {self.quota_bytes}")
        if self.replicas < 1:
            raise ConfigError(f"mount {self.name}: replicas must be at least 1, got {self.replicas}")
        object.__setattr__(self, "options", dict(self.options))

    @classmethod
    def parse(cls, text: str) -> Mount:
        """`NAME=URL`, as on a command line. Raises ConfigError."""
        name, separator, url = text.partition("=")
        if not separator:
            raise ConfigError(f"mount {redact_url(text)!r}: want NAME=URL")
        return cls(name, url)

    def __repr__(self) -> str:
        options = f", options {', '.join(sorted(self.options))}" if self.options else ""
        return f"<Mount /{self.name} = {self.url}, {self.freshness}{options}>"


class MountTable:
    """The mounts of a worker or a client; immutable, a change is another table."""

    __slots__ = ("_by_name", "_by_url")

    def __init__(self, mounts: Iterable[Mount] = ()) -> None:
        by_name: dict[str, Mount] = {}
        for mount in mounts:
            if mount.name in by_name:
                raise ConfigError(
                    f"mount {mount.name}: given twice, {by_name[mount.name].url} and {mount.url}"
                )
            by_name[mount.name] = mount
        self._by_name = dict(sorted(by_name.items()))
        located = [(*_locate(mount.url), mount) for mount in self._by_name.values()]
        self._by_url = sorted(located, key=lambda entry: -len(entry[1]))  # stable: ties go by name

    @classmethod
    def parse(cls, text: str) -> MountTable:
        """`NAME=URL NAME=URL ...`, separated by white space. Raises ConfigError."""
        return cls(Mount.parse(item) for item in text.split())

    def resolve(self, path: str) -> tuple[Mount, str]:
        """The mount of a kara path and the rest, relative to the mount's URL, "" for its root.

        Raises ValueError for what `normalize_path` refuses, FileNotFoundError (naming the mounts there
        are) for an unknown mount, IsADirectoryError for "/", which holds nothing but the mounts.
        """
        normal = normalize_path(path)
        if normal == "/":
            raise IsADirectoryError(errno.EISDIR, f"the root holds only mounts: {self._names()}", path)
        name, _, relative = normal[1:].partition("/")
        mount = self._by_name.get(name)
        if mount is None:
            raise FileNotFoundError(errno.ENOENT, f"no mount {name!r}, there are: {self._names()}", path)
        return mount, relative

    def from_url(self, url: str) -> str:
        """The kara path of a store's URL, by the mount whose URL is its longest prefix of whole segments.

        Scheme and host match in any case. Object keys are taken literally; in http(s) URLs percent
        escapes are decoded, as kara paths have none.

        Raises ConfigError (naming the mounts there are) where no mount covers it, ValueError where the
        URL has no kara path: dots, empty segments, a query, an encoded slash.
        """
        place, path = _locate(url)
        for mount_place, mount_path, mount in self._by_url:
            if place == mount_place and is_below(path, mount_path):
                return normalize_path(
                    f"/{mount.name}{path if mount_path == '/' else path[len(mount_path) :]}"
                )
        known = ", ".join(f"{mount.name}={mount.url}" for mount in self) or "none"
        raise ConfigError(f"no mount covers {redact_url(url)!r}; mounts: {known}")

    def with_mount(self, mount: Mount) -> MountTable:
        """A table with one mount more. Raises ConfigError if the name is taken."""
        return MountTable((*self, mount))

    def get(self, name: str) -> Mount | None:
        return self._by_name.get(name)

    def __iter__(self) -> Iterator[Mount]:
        """By name."""
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MountTable) and self._by_name == other._by_name

    __hash__ = None  # type: ignore[assignment]  # mounts hold dicts

    def __repr__(self) -> str:
        return f"<MountTable {self._names()}>"

    def _names(self) -> str:
        return ", ".join(self._by_name) or "none"


def redact_url(url: str) -> str:
    """The URL without user and password, for messages."""
    return _PASSWORD.sub("", url)


def _locate(url: str) -> tuple[str, str]:
    """`scheme://host` in one spelling, and the path, "/" or without a slash at its end. Raises ValueError."""
    if url.startswith("/"):
        return "file://", normalize_path(url)
    scheme, separator, rest = url.partition("://")
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ValueError(f"URL {redact_url(url)!r}: want scheme://host/path or an absolute path")
    host, _, path = _PASSWORD.sub("", f"://{rest}")[3:].partition("/")
    if scheme in ("http", "https"):
        if "?" in rest or "#" in rest:
            raise ValueError(
                f"URL {redact_url(url).partition('?')[0]!r}: a query or fragment has no kara path"
            )
        if "%2f" in path.lower():
            raise ValueError(f"URL {redact_url(url)!r}: an encoded slash has no kara path")
        path = unquote(path, errors="strict")
    if scheme in _HOST_IN_LOWER_CASE:
        host = host.lower().removesuffix(_DEFAULT_PORT.get(scheme, "\0"))
        if not host:
            raise ValueError(f"URL {redact_url(url)!r}: no host or bucket")
    return f"{scheme}://{host}", normalize_path(f"/{path}")


def _short(path: str) -> str:
    return repr(path if len(path) <= 200 else path[:200] + "...")
