"""The data port: the protocol of docs/protocol.md over a PageCache."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from kara_cache.errors import AccessDenied, ConfigError, KaraError, WorkerBusy
from kara_cache.mount import Mount, is_below
from kara_cache.token import Claims, Verb
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import (
    MAX_RANGES_BODY_BYTES,
    MAX_READ_BYTES,
    PREFIX,
    decode_ranges,
    encode_info,
)
from kara_worker.access import AccessControl
from kara_worker.data_port import passed_pages
from kara_worker.data_port.client_totals import ClientTotals
from kara_worker.data_port.explain import explain
from kara_worker.data_port.file_answers import FileAnswers
from kara_worker.data_port.file_endpoints import FileEndpoints
from kara_worker.data_port.hit_reads import HitReads
from kara_worker.data_port.ranges import Ranges, refs
from kara_worker.data_port.reads import Reads
from kara_worker.data_port.slow_reads import SlowReads, slow_reads_of
from kara_worker.data_port.upload import upload
from kara_worker.file_facts import FileFacts
from kara_worker.http.arguments import number as _number
from kara_worker.http.arguments import text as _text
from kara_worker.http.output import SocketOutput
from kara_worker.http.request import Request
from kara_worker.http.server import Connection
from kara_worker.metrics import WorkerMetrics
from kara_worker.mount_threads import MountThreads
from kara_worker.mounted_stores import MountedStores
from kara_worker.page_cache import FileRef, PageCache

V = TypeVar("V")
_READ = f"GET {PREFIX}/read?".encode()
_JSON_LIMIT = 1 << 20

Handler = Callable[[Request], Awaitable[None]]


class PageServer:
    """Implements `Application`. Event loop only; store calls run in `threads`."""

    def __init__(
        self,
        cache: PageCache,
        stores: MountedStores,
        facts: FileFacts,
        access: AccessControl,
        metrics: WorkerMetrics,
        clients: ClientTotals,
        threads: MountThreads,
        *,
        status: Callable[[], dict[str, Any]],
        sendfile_above: int,
        add_mount: Callable[[str, dict[str, Any]], Mount] | None = None,
    ) -> None:
        """`status` describes this worker; `add_mount` exists only on a private worker. Whole pages of more
        than `sendfile_above` bytes go out by sendfile."""
        self._cache = cache
        self._stores = stores
        self._facts = facts
        self._access = access
        self._metrics = metrics
        self._clients = clients
        self._threads = threads
        self._status = status
        self._add_mount = add_mount
        self._slow_reads = SlowReads(metrics.mean_store_seconds)
        self._reads = Reads(cache, metrics)
        self._ranges = Ranges(cache, self._reads, metrics)
        self._files = FileEndpoints(FileAnswers(cache, facts, metrics, self._ranges.load), facts, access)
        self._hits = HitReads(cache, access, metrics, sendfile_above)
        self._passed = passed_pages.PassedPages(self._hits, metrics)
        self.draining = False
        self.last_request = time.monotonic()
        self._routes: dict[tuple[str, str], tuple[str, Handler]] = {
            ("GET", "/read"): ("read", self._read),
            ("POST", "/ranges"): ("ranges", self._read_ranges),
            ("PUT", "/file"): ("write", self._write),
            ("DELETE", "/file"): ("delete", self._delete),
            ("POST", "/directory"): ("mkdir", self._make_directory),
            ("POST", "/free"): ("free", self._free),
            ("POST", "/verify"): ("verify", self._verify),
            ("GET", "/pages"): ("pages", self._pages),
            ("GET", "/mounts"): ("mounts", self._mounts),
            ("POST", "/mounts"): ("add_mount", self._new_mount),
            ("GET", "/worker"): ("worker", self._worker),
            ("GET", "/explain"): ("explain", self._explain),
            ("POST", "/client-metrics"): ("client_metrics", self._client_metrics),
            ("GET", "/slow-reads"): ("slow_reads", self._told_slow_reads),
            **self._files.routes(),
        }

    def add_routes(self, routes: Mapping[tuple[str, str], tuple[str, Handler]]) -> None:
        """More endpoints: method and path below the prefix to the name in metrics and what answers."""
        self._routes |= routes

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        if not head.startswith(_READ) or self.draining:
            quick = not self.draining and (
                self._passed.try_answer(connection, head) or self._files.try_answer(connection, head)
            )
            if not quick:
                return False
            self.last_request = connection.since
            return True
        self.last_request = connection.since
        return self._hits.try_answer(connection, head)

    async def handle(self, request: Request) -> None:
        began = self.last_request = time.monotonic()
        route = None
        if request.path.startswith(PREFIX + "/"):
            route = self._routes.get((request.method, request.path[len(PREFIX) :]))
        if route is None:
            document = {
                "error": "value",
                "message": f"no such endpoint: {request.method} {request.path[:200]}",
            }
            await request.respond_json(document, 404)
            return
        method, handler = route
        result = "error"
        try:
            if self.draining:
                raise WorkerBusy("this worker is draining: ask another one")
            await handler(request)
            result = "ok"
        except (OSError, ValueError, AccessDenied) as exc:
            if not isinstance(exc, (KaraError, ConnectionError)) or isinstance(
                exc, (AccessDenied, ConfigError)
            ):
                result = "client_error"
            raise
        finally:
            self._metrics.observe(method, result, time.monotonic() - began)

    async def _in_thread(self, mount: Mount, work: Callable[..., V], *args: Any) -> V:
        threads = self._threads.of(mount.name)
        return await asyncio.get_running_loop().run_in_executor(threads, work, *args)

    def forget_targets(self) -> None:
        """After the mount table changed."""
        self._files.forget()
        self._hits.forget()
        self._facts.clear()

    # -- reading ------------------------------------------------------------------------------------

    async def _read(self, request: Request) -> None:
        path, start, length = _text(request, "path"), _number(request, "start"), _number(request, "length")
        if length > MAX_READ_BYTES:
            raise ValueError(f"length {length} of {path}: at most {MAX_READ_BYTES} bytes in one request")
        ref = self._ref(request)
        file = request.raw_query.rpartition("&start=")[0].encode()
        self._access.grant(request, file, path)
        keep = request.query.get("keep") != "0"
        if keep and file:
            self._hits.know(file, ref)
        await self._reads.respond(request, ref, start, min(start + length, ref.size), keep=keep)

    def _ref(self, request: Request) -> FileRef:
        return self._cache.ref(
            _text(request, "path"), request.query.get("version", ""), _number(request, "size")
        )

    async def _read_ranges(self, request: Request) -> None:
        files, ranges = decode_ranges(await request.body_bytes(MAX_RANGES_BODY_BYTES))
        for file in files:
            self._access.check(request, "read", file.path)
        named = refs(self._cache, files)
        for ref in named:
            if isinstance(ref, FileRef):
                self._metrics.hot_paths.read(ref)
        await self._ranges.respond(request, named, ranges, joined=request.query.get("joined") == "1")

    async def _pages(self, request: Request) -> None:
        """Descriptors of pages that are on SSD; readers on this host then need us no more for them."""
        output = request.connection.output
        if not request.connection.local or not isinstance(output, SocketOutput):
            raise ValueError("descriptors are passed over the unix socket only")
        ref, first = self._ref(request), _number(request, "first")
        count = min(_number(request, "count"), passed_pages.MOST)
        self._metrics.hot_paths.read(ref)
        self._hits.know(request.raw_query.rpartition("&first=")[0].encode(), ref)
        pages = await self._cache.open_pages(ref, range(first, first + count))
        request.started = True
        await request.write(passed_pages.answer_with(pages, places="places" in request.query))

    # -- metadata and writing -----------------------------------------------------------------------

    async def _write(self, request: Request) -> None:
        path = self._allowed(request, "write")
        append = request.query.get("append") == "1"
        mount, relative = self._stores.writable(path)
        with self._metrics.store_request(mount.name, "write"):
            store = await self._in_thread(mount, self._stores.store, mount)
            writer = await self._in_thread(mount, lambda: store.open_writer(relative, append=append))
            info = await upload(request.body(), writer, self._threads.of(mount.name))
        self._facts.forget(path)
        await request.respond_json(encode_info(FileInfo(path, info.size, info.version, info.mtime)))

    async def _delete(self, request: Request) -> None:
        await self._change(request, self._stores.delete)

    async def _make_directory(self, request: Request) -> None:
        await self._change(request, self._stores.make_directory)

    async def _change(self, request: Request, change: Callable[[str], None]) -> None:
        path = self._allowed(request, "write")
        mount, _ = self._stores.writable(path)
        await self._in_thread(mount, change, path)
        self._facts.forget(path)
        await request.respond_json({})

    # -- the cache itself ---------------------------------------------------------------------------

    async def _free(self, request: Request) -> None:
        path = self._allowed(request, "admin")
        recursive = request.query.get("recursive") == "1"
        pages, count = await self._cache.free(path, recursive=recursive)
        await request.respond_json({"pages": pages, "bytes": count})

    async def _verify(self, request: Request) -> None:
        """A reader found wrong bytes. Costs a read from SSD, so it needs no more rights than a read."""
        self._allowed(request, "read")
        ref, start, length = self._ref(request), _number(request, "start"), _number(request, "length")
        stop = min(start + min(length, MAX_READ_BYTES), ref.size)
        self._hits.forget_answers()
        pages, dropped = (0, 0) if start >= stop else await self._cache.check(ref, start, stop)
        await request.respond_json({"pages": pages, "dropped": dropped})

    async def _mounts(self, request: Request) -> None:
        claims = self._access.identify(request)
        visible = [m for m in self._stores.mounts if claims is None or _concerns(claims, f"/{m.name}")]
        await request.respond_json([describe_mount(mount) for mount in visible])

    async def _new_mount(self, request: Request) -> None:
        if self._add_mount is None or not request.connection.local:
            raise AccessDenied("mounts are the operator's: this worker takes none from clients")
        document = json.loads(await request.body_bytes(_JSON_LIMIT))
        if not isinstance(document, dict) or not isinstance(document.get("url"), str):
            raise ValueError('expected {"url": text, "options": object}')
        mount = self._add_mount(document["url"], document.get("options") or {})
        self.forget_targets()
        await request.respond_json(describe_mount(mount))

    async def _worker(self, request: Request) -> None:
        self._access.identify(request)
        await request.respond_json({**self._status(), "passes_pages": True})

    async def _explain(self, request: Request) -> None:
        path = self._allowed(request, "read")
        info = await self._facts.info(path)
        await request.respond_json(explain(self._cache, info))

    async def _client_metrics(self, request: Request) -> None:
        self._access.identify(request)
        document = json.loads(await request.body_bytes(_JSON_LIMIT))
        slow = slow_reads_of(document)  # first: a bad body changes nothing
        self._clients.add(document)
        self._slow_reads.add(slow)
        await request.respond_json({})

    async def _told_slow_reads(self, request: Request) -> None:
        claims = self._access.identify(request)
        reads = self._slow_reads.told(lambda path: claims is None or claims.allows("read", path))
        await request.respond_json({"reads": reads})

    def _allowed(self, request: Request, verb: Verb) -> str:
        path = _text(request, "path")
        self._access.check(request, verb, path)
        return path


def describe_mount(mount: Mount) -> dict[str, Any]:
    """What clients may know of a mount: no option values."""
    return {
        "name": mount.name,
        "url": mount.url,
        "freshness": str(mount.freshness),
        "replicas": mount.replicas,
        "read_only": mount.read_only,
    }


def _concerns(claims: Claims, mount: str) -> bool:
    """Whether the scope covers the mount or something in it."""
    return is_below(mount, claims.prefix) or is_below(claims.prefix, mount)
