"""Bytes that another worker keeps, read through the client that everybody else uses."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.membership.base import Membership
from kara_cache.ufs.base import FileInfo
from kara_worker.config import WorkerConfig
from kara_worker.peers import client_tls

_THREADS = 16


class OwnerReads:
    """Event loop only; the client runs in threads of its own. Failover and verification are the client's."""

    def __init__(self, config: WorkerConfig, membership: Membership) -> None:
        """`membership` remains the caller's to close."""
        client = ClientConfig(
            cluster_name=config.cluster_name,
            secret=config.secret,
            tls=client_tls(config),
            local_reads=False,  # bytes go out by socket: descriptors would save nothing
        )
        self._client = CacheClient(client, membership=membership)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="owner-read")

    async def read(self, info: FileInfo, start: int, stop: int) -> memoryview:
        """Exactly [start, stop) of this version. Raises as `CacheClient.read_into`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, info, start, stop)

    def _read(self, info: FileInfo, start: int, stop: int) -> memoryview:
        buffer = memoryview(bytearray(stop - start))
        count = self._client.read_into(info, start, buffer)
        return buffer[:count]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._client.close)
