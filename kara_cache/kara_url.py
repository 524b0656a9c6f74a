"""How a file is spelled towards the fsspec face: names, urls of stores, and kara paths.

    spelling                          name inside the filesystem    where it leads
    kara://mount/a, kara:///mount/a   mount/a                       /mount/a
    kara::s3://bucket/a               bucket/a                      the mount that holds s3://bucket/a
    kara::oss://endpoint/bucket/a     /endpoint/bucket/a            (leading slash as in ossfs)
    kara::https://host/a              https://host/a
    kara::file:///data/a              /data/a
    s3://bucket/a, on any of them     s3://bucket/a, or as above    the mount that holds s3://bucket/a

A name is what `ls` returns and what every method takes. Names of a chained filesystem look the way
the store's own fsspec class spells them, because `fsspec.core.url_to_fs` hands out that spelling
beside the filesystem, and callers compare the two by prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALIASES = {"local": "file", "s3a": "s3", "s3n": "s3", "gcs": "gs"}
_ROOTED = frozenset({"file", "memory", "oss"})  # names start with "/"
_WHOLE = frozenset({"http", "https"})  # names are whole urls


def scheme_of(text: str) -> str | None:
    """The scheme of a url, lower case and without aliases; None for anything that is no url."""
    found = _SCHEME.match(text)
    return _canonical(found[1]) if found else None


def strip_kara(path: str) -> str:
    """The path below `kara://` or behind `kara::`, without slashes around it.

    What fsspec's class-level `_strip_protocol` must be: "" for a bare `kara://`, which is how
    fsspec recognises a chained url and puts the store's path there instead.
    """
    for prefix in ("kara://::", "kara::", "kara://"):
        if path.startswith(prefix):
            path = path[len(prefix) :]
            break
    if scheme_of(path):
        return _without_slash(path)
    return path.strip("/")


def root_of(url: str) -> str:
    """The part of a url that becomes one mount: bucket, host, or the whole local tree.

    An OSS url may begin with its endpoint (`oss://endpoint/bucket/key`); bucket names hold no dot
    (https://help.aliyun.com/zh/oss/user-guide/bucket-naming-conventions), endpoints always do.
    """
    scheme, rest = _split(url)
    if scheme == "file":
        return "file:///"
    parts = rest.split("/")
    if not parts[0]:
        raise ValueError(f"{url!r} names no bucket or host")
    if scheme == "oss" and "." in parts[0]:
        if len(parts) < 2 or not parts[1]:
            raise ValueError(f"{url!r} names an endpoint but no bucket")
        return f"oss://{parts[0]}/{parts[1]}"
    return f"{scheme}://{parts[0]}"


@dataclass(frozen=True, slots=True)
class NameSpace:
    """The spelling of one filesystem: of kara's mounts, or of the store it was chained to."""

    scheme: str | None = None
    """The scheme of the chained store; None where names are kara paths."""

    def __post_init__(self) -> None:
        if self.scheme is not None:
            object.__setattr__(self, "scheme", _canonical(self.scheme))

    def name(self, path: str) -> str:
        """The name for any spelling of it; name(name(x)) == name(x).

        Raises ValueError for a url of a store that a chained filesystem does not lead to.
        """
        path = strip_kara(path)
        scheme = scheme_of(path)
        if self.scheme is None:
            return path if scheme is None else _url(path)
        if scheme is None:
            return self._spelled(path)
        if scheme != self.scheme and not {scheme, self.scheme} <= _WHOLE:
            raise ValueError(f"{path!r}: this filesystem was made for {self.scheme}:// urls")
        if scheme in _WHOLE:
            return _url(path)
        return self._spelled(_split(path)[1])

    def url(self, name: str) -> str | None:
        """The store's url of a name, None where the name is a kara path."""
        if scheme_of(name):
            return name
        if self.scheme is None:
            return None
        return f"{self.scheme}://{name}" if self.scheme == "file" else f"{self.scheme}://{name.strip('/')}"

    def unstrip(self, name: str) -> str:
        """A url that `fsspec.open` understands, given the same options."""
        url = self.url(name)
        return f"kara://{name}" if url is None else f"kara::{url}"

    def parent(self, name: str) -> str:
        """The name one level up; a root is its own parent."""
        prefix, rest = "", name
        found = _SCHEME.match(name)
        if found:
            prefix, rest = found[0], name[found.end() :]
        if prefix and "/" not in rest:
            return name
        above = rest.rpartition("/")[0]
        return prefix + above or self.root

    @property
    def root(self) -> str:
        return "/" if self.scheme in _ROOTED else ""

    def _spelled(self, path: str) -> str:
        path = path.strip("/")
        if self.scheme in _WHOLE:
            return f"{self.scheme}://{path}"
        return f"/{path}" if self.scheme in _ROOTED else path


def rebase(path: str, base: str, name: str) -> str:
    """The name of kara path `path`, where `base`, itself or a directory above it, is called `name`.

    >>> rebase("/train/a/b", "/train/a", "bucket/a")
    'bucket/a/b'

    Kara paths hold no percent escapes, http(s) urls do.
    """
    below = path[len(base) :].lstrip("/") if base != "/" else path.strip("/")
    if scheme_of(name) in _WHOLE:
        below = quote(below, safe="/!$&'()*+,;=:@~")  # what RFC 3986 3.3 allows in a path
    if not below:
        return name
    if not name or name.endswith("/"):
        return name + below
    return f"{name}/{below}"


def _canonical(scheme: str) -> str:
    scheme = scheme.lower()
    return _ALIASES.get(scheme, scheme)


def _split(url: str) -> tuple[str, str]:
    found = _SCHEME.match(url)
    if not found:
        raise ValueError(f"{url!r} is not a url")
    return _canonical(found[1]), url[found.end() :]


def _url(text: str) -> str:
    scheme, rest = _split(text)
    return f"{scheme}://{rest}"


def _without_slash(url: str) -> str:
    stripped = url.rstrip("/")
    return f"{stripped}//" if stripped.endswith(":") else stripped
