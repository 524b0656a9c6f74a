"""Load jobs and rules for paths on one worker, put together with their endpoints."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from kara_cache.membership.base import WorkerInfo
from kara_cache.membership.configured import etcd_client
from kara_worker.access import AccessControl
from kara_worker.config import LoadConfig, WorkerConfig
from kara_worker.fetch.local import LocalSource
from kara_worker.fetch.process import FetchProcess
from kara_worker.fetch.source import Source
from kara_worker.file_facts import FileFacts
from kara_worker.jobs.endpoints import JobEndpoints
from kara_worker.jobs.etcd_journal import EtcdJournal
from kara_worker.jobs.job_board import JobBoard
from kara_worker.jobs.journal import Journal
from kara_worker.jobs.load_metrics import LoadMetrics
from kara_worker.jobs.local_journal import LocalJournal
from kara_worker.jobs.owner import LoadOwner
from kara_worker.page_cache import RUN_BYTES, PageCache
from kara_worker.peers import peers_of
from kara_worker.rules.endpoints import RuleEndpoints
from kara_worker.rules.path_rules import PathRules
from kara_worker.rules.shelf import EtcdRules, LocalRules, RuleShelf

_RULES = "RULES.json"
_LEASES = 4 / 3  # that a job waits for a worker which is away: 20 s; a restart takes less
_DIRECTORY = "LOADS"  # both in the first page directory, where nothing but this worker's things is


class Loads:
    """Made when the worker listens; `close` hands its jobs to others and forgets those of others."""

    def __init__(
        self,
        config: WorkerConfig,
        own: WorkerInfo,
        cache: PageCache,
        facts: FileFacts,
        access: AccessControl,
        metrics: LoadMetrics,
        executor: Executor,
        *,
        reads: Callable[[], int],
    ) -> None:
        self.cluster = peers_of(config, own)
        self.owner = LoadOwner(
            cache,
            facts,
            metrics,
            config.loads,
            reads=reads,
            source=_source(config.loads, cache),
            peers=lambda worker: self.cluster.table().clients.get(worker),
        )
        self._watching = asyncio.get_running_loop().create_task(self.owner.watch())
        self.board = JobBoard(
            _journal(config, own),
            self.cluster,
            cache.stores,
            metrics,
            executor,
            worker=own.id,
            page_bytes=cache.page_bytes,
            patience_s=_LEASES * config.life.lease_ttl_s,
        )
        self.endpoints = JobEndpoints(self.board, self.owner, access, executor)
        self.rules = PathRules(_shelf(config), cache.pages)
        cache.before_put = self.rules.note
        self.rule_endpoints = RuleEndpoints(
            self.rules, cache.stores, self.cluster, access, executor, worker=own.id
        )
        self._closed = False

    def start(self) -> None:
        self.board.start()
        self.rules.start()

    async def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._watching.cancel()
        await asyncio.to_thread(self.board.close)
        self.owner.close()
        await asyncio.to_thread(self.cluster.close)
        await asyncio.to_thread(self.cluster.membership.close)


def _source(config: LoadConfig, cache: PageCache) -> Source:
    """Where there is no memory to share (not Linux), this process fetches."""
    seat_bytes = max(RUN_BYTES, cache.page_bytes)
    local = LocalSource(cache.stores, cache.page_bytes, seat_bytes=seat_bytes)
    if not hasattr(os, "memfd_create"):
        return local
    return FetchProcess(
        local, cache.metrics, cache.page_bytes, seats=config.load_threads, nice=config.load_nice
    )


def _shelf(config: WorkerConfig) -> RuleShelf:
    if config.etcd.hosts:
        return EtcdRules(etcd_client(config.etcd), config.cluster_name)
    return LocalRules(Path(config.store.page_dirs[0]) / _RULES)


def _journal(config: WorkerConfig, own: WorkerInfo) -> Journal:
    if config.etcd.hosts:
        return EtcdJournal(etcd_client(config.etcd), config.cluster_name, own.id)
    return LocalJournal(Path(config.store.page_dirs[0]) / _DIRECTORY, own.id)
