"""The three names of a file: its URL in the store, its kara path, and the `mPath` of Alluxio clients."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from urllib.parse import quote

from kara_cache.errors import ConfigError
from kara_cache.mount import Mount, MountTable
from kara_worker.alluxio.raw_query import spellings

_MAX_IDS = 65536  # of files that were listed or asked for; only odd names and clients before 1.0.7 need them
_ID = re.compile(r"[0-9a-f]{64}")
_URL_SAFE = "/!$&'()*+,;=:@"  # pchar of RFC 3986, which a client may paste into a request line


class UnknownMount(FileNotFoundError):
    """No mount covers a URL: nothing that is not mounted is served."""


class UfsNames:
    """Translations by the mount table of the moment. Event loop only."""

    def __init__(self, mounts: Callable[[], MountTable]) -> None:
        self._mounts = mounts
        self._urls: OrderedDict[str, str] = OrderedDict()  # SHA-256 of a URL, in hex, to the URL

    def kara_path(self, url: str) -> str:
        """Raises UnknownMount, or ValueError for a path that cannot be."""
        try:
            return self._mounts().from_url(url)
        except ConfigError as exc:
            raise UnknownMount(str(exc)) from exc

    def url(self, path: str) -> str:
        """The URL of a kara path in its store, as clients spell it."""
        mount, relative = self._mounts().resolve(path)
        return url_below(mount, relative)

    def remember(self, url: str) -> None:
        """So that requests that carry the id alone can be answered."""
        key = sha256(url.encode()).hexdigest()
        self._urls[key] = url
        self._urls.move_to_end(key)
        if len(self._urls) > _MAX_IDS:
            self._urls.popitem(last=False)

    def by_id(self, identity: str) -> str | None:
        return self._urls.get(identity)

    def resolve(self, identity: str, raw: str | None) -> str:
        """The URL that a client means by an id and a raw path; ValueError where they contradict each other.

        An id that is no SHA-256 says nothing, and the path alone counts.
        """
        ways = [] if raw is None else list(spellings(raw))
        if self._known_by_id_alone(identity, ways):
            return self._urls[identity]
        return ways[self.choose(identity, ways)]

    def choose(self, identity: str, urls: Sequence[str]) -> int:
        """Which of `urls` has this id; the first where the id says nothing."""
        if not urls:
            raise ValueError(f"no path, and the id {identity[:80]!r} is not known here")
        if not _ID.fullmatch(identity):
            return 0
        for index, url in enumerate(urls):
            if sha256(url.encode()).hexdigest() == identity:
                return index
        raise ValueError(
            f"path {urls[0][:200]!r} is not the one that the id {identity} was made of: "
            "was it cut at a '#'? Such a request cannot be answered for the right file"
        )

    def _known_by_id_alone(self, identity: str, urls: Sequence[str]) -> bool:
        if identity not in self._urls:
            return False
        return all(sha256(url.encode()).hexdigest() != identity for url in urls)


def url_below(mount: Mount, relative: str) -> str:
    root = mount.url
    if root.startswith("/"):
        root = f"file://{root}"
    if root.startswith(("http://", "https://")):
        relative = quote(relative, safe=_URL_SAFE)
    return f"{root.rstrip('/')}/{relative}" if relative else root


def quoted_path(path: str) -> str:
    """A path as it may stand in a request line; what clients paste there comes back as it was."""
    return quote(path, safe=_URL_SAFE)
