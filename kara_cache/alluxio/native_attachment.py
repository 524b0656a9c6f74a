"""A configuration's way into a real Alluxio cluster, in the place of the way into the cache."""

from __future__ import annotations

from typing import cast

from kara_cache.alluxio.native_cluster import NativeCluster
from kara_cache.attachment import Attachment, StoreOptions
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.ufs.base import UnderStore


class NativeAttachment(Attachment):
    """Paths are urls, which is what Alluxio takes; stores the caller gave options for are the fallback."""

    def __init__(self, config: ClientConfig, *, stores: StoreOptions, virtual_nodes: int) -> None:
        """Raises ConfigError without workers to ask."""
        super().__init__(config, stores=stores)
        self._arguments = config, virtual_nodes
        self._cluster: dict[str, NativeCluster] = {}  # at most one, under "cluster"; see `Attachment`
        self.cluster.close()  # a configuration that names no workers shows here

    @property
    def cluster(self) -> NativeCluster:
        cluster = self._cluster.get("cluster")
        if cluster is None:
            made = NativeCluster(*self._arguments, self._store_of_url)
            cluster = self._cluster.setdefault("cluster", made)
            if cluster is not made:
                made.close()
        return cluster

    @property
    def client(self) -> CacheClient:
        # It has the verbs that files, listings and writes use, and no others.
        return cast(CacheClient, self.cluster)

    def kara_path(self, url: str) -> str:
        return url

    def know_mounts(self) -> None:
        """There are none."""

    def close(self) -> None:
        cluster = self._cluster.pop("cluster", None)
        if cluster is not None:
            cluster.close()
        super().close()

    def _store_of_url(self, url: str) -> tuple[UnderStore, str]:
        return self._own_store(self._own_path(url))
