"""One configuration's way into the cache: its client, and where the urls of stores lead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import blake2b
from time import monotonic
from typing import Any

from kara_cache import ufs
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import CacheError, WorkerUnavailable
from kara_cache.kara_url import root_of, scheme_of
from kara_cache.local_worker import LocalMembership
from kara_cache.membership.base import MembershipView
from kara_cache.mount import Mount, MountTable
from kara_cache.store_options import store_options
from kara_cache.ufs.base import UnderStore

logger = logging.getLogger(__name__)

_START_AGAIN_S = (
    60.0  # an attempt takes half a second; what kept a worker from starting is seldom gone sooner
)

StoreOptions = Mapping[str, Mapping[str, Any]]
"""The caller's own options for stores, by scheme: `{"s3": {"endpoint": ...}}`."""


class Attachment:
    """A `CacheClient` made at first use, and the kara path of any url.

    With a cluster configured, its operator's mounts say where a url leads. Without one the client
    talks to this user's private worker, which takes the url's bucket or host, with the caller's
    options, as a mount of its own. While no worker can say, the url of a store that the caller gave
    options for gets a path that only this process understands, so that its reads go to that store.

    Thread-safe without locks, because a lock that another thread holds at a `fork()` would never be
    released in the child: what two threads made at the same time, one of them throws away.
    """

    def __init__(self, config: ClientConfig, *, stores: StoreOptions) -> None:
        self.config = config
        self._given_options = stores
        self._client: dict[str, CacheClient] = {}  # at most one, under "client"
        self._mounts = MountTable()  # as workers told, or as a private one was asked for
        self._own_mounts = MountTable()  # of urls that no worker could place
        self._worker_revision = -1  # of the private worker that has our mounts
        self._ask_again = 0.0  # monotonic; when workers are worth asking for mounts again
        self._stores: dict[str, UnderStore] = {}  # by root url

    @property
    def client(self) -> CacheClient:
        client = self._client.get("client")
        if client is None:
            made = self._connect()
            client = self._client.setdefault("client", made)
            if client is not made:
                made.close()
        return client

    def kara_path(self, url: str) -> str:
        """Raises ConfigError where no mount covers the url, ValueError where it cannot have a path."""
        reachable = _scheme(url) in self._given_options
        if reachable and monotonic() < self._ask_again:
            return self._own_path(url)
        try:
            return self._private_path(url) if self._is_private else self._cluster_path(url)
        except CacheError:
            if not reachable:
                raise
            self._ask_again = monotonic() + self.config.suspect_s
            return self._own_path(url)

    def know_mounts(self) -> None:
        """So that the store of a kara path is known when no worker can say."""
        if self._given_options and not self._mounts and monotonic() >= self._ask_again:
            try:
                self._mounts = self._mounts_of_cluster()
            except CacheError:
                self._ask_again = monotonic() + self.config.suspect_s

    def close(self) -> None:
        """Closes the client; the next use makes a new one."""
        client = self._client.pop("client", None)
        stores, self._stores = self._stores, {}
        self._worker_revision = -1
        if client is not None:
            client.close()
        for store in stores.values():
            store.close()

    @property
    def _is_private(self) -> bool:
        return not (self.config.etcd.hosts or self.config.worker_hosts)

    def _connect(self) -> CacheClient:
        if not self._given_options:
            return CacheClient(self.config)
        membership = _Dispensable(LocalMembership()) if self._is_private else None
        return CacheClient(self.config, membership=membership, fallback=self._own_store)

    def _cluster_path(self, url: str) -> str:
        try:
            return self._mounts.from_url(url)
        except ValueError:  # a ConfigError is one: the operator may have added a mount since
            self._mounts = self._mounts_of_cluster()
            return self._mounts.from_url(url)

    def _mounts_of_cluster(self) -> MountTable:
        return MountTable(Mount(mount["name"], mount["url"]) for mount in self.client.mounts())

    def _private_path(self, url: str) -> str:
        revision = self.client.workers().revision
        mounts = self._mounts if revision == self._worker_revision else MountTable()
        root = root_of(url)
        if all(mount.url != root for mount in mounts):
            path = self.client.add_mount(root, self._options_for(root))
            mounts = mounts.with_mount(Mount(path.strip("/"), root))
            self._mounts, self._worker_revision = mounts, revision
        return mounts.from_url(url)

    def _own_path(self, url: str) -> str:
        root, mounts = root_of(url), self._own_mounts
        if all(mount.url != root for mount in mounts):
            name = f"own-{blake2b(root.encode(), digest_size=8).hexdigest()}"
            mounts = self._own_mounts = mounts.with_mount(Mount(name, root))
        return mounts.from_url(url)

    def _own_store(self, path: str) -> tuple[UnderStore, str]:
        """The store of a kara path, opened with the caller's options; LookupError without such options."""
        name, _, below = path[1:].partition("/")
        mount = self._mounts.get(name) or self._own_mounts.get(name)
        if mount is None or _scheme(mount.url) not in self._given_options:
            raise LookupError(f"{path}: no options were given for the store that it is in")
        store = self._stores.get(mount.url)
        if store is None:
            made = ufs.open_store(mount.url, self._options_for(mount.url))
            store = self._stores.setdefault(mount.url, made)
            if store is not made:
                made.close()
        return store, below

    def _options_for(self, url: str) -> dict[str, Any]:
        scheme = _scheme(url)
        return store_options(scheme, self._given_options.get(scheme, {}))


class _Dispensable:
    """A private worker that may fail to start, for a caller that reaches the stores itself."""

    def __init__(self, membership: LocalMembership) -> None:
        self._membership = membership
        self._nobody = MembershipView((), -2, "static")
        self._again = 0.0  # monotonic

    def view(self) -> MembershipView:
        if monotonic() < self._again:
            return self._nobody
        try:
            return self._membership.view()
        except WorkerUnavailable as exc:
            self._again = monotonic() + _START_AGAIN_S
            logger.warning("reading from stores without a cache: %s", exc)
            return self._nobody

    def close(self) -> None:
        self._membership.close()


def _scheme(url: str) -> str:
    return scheme_of(url) or "file"
