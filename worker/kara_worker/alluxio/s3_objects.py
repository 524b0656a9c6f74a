"""Files as S3 objects: GET and HEAD with ranges and conditions, PUT, copy, DELETE."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar
from urllib.parse import unquote

from kara_cache.mount import normalize_path
from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.byte_range import RangeNotSatisfiable, parse_range
from kara_worker.alluxio.file_bytes import Answer, FileBytes
from kara_worker.alluxio.s3_body import content_of
from kara_worker.alluxio.s3_errors import S3Error
from kara_worker.alluxio.s3_target import Routes, Target
from kara_worker.alluxio.s3_xml import document, etag, http_time, iso_time, text
from kara_worker.alluxio.store_changes import StoreChanges
from kara_worker.data_port.upload import upload
from kara_worker.file_facts import FileFacts
from kara_worker.http.request import Request
from kara_worker.http.server import Connection
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores

V = TypeVar("V")
_MAX_TARGETS = 65536
_OVERRIDES = ("content-type", "content-disposition", "content-encoding", "content-language", "cache-control")


class S3Objects:
    """Event loop only; store calls run in `executor`."""

    def __init__(
        self,
        stores: MountedStores,
        facts: FileFacts,
        files: FileBytes,
        metrics: WorkerMetrics,
        executor: Executor,
        changes: Executor,
    ) -> None:
        """`changes` is for copies, which may take long."""
        self._stores = stores
        self._facts = facts
        self._files = files
        self._metrics = metrics
        self._executor = executor
        self._copies = changes
        self._changes = StoreChanges(stores)
        self._targets: dict[bytes, str] = {}  # request targets that were answered before, to kara paths

    def routes(self) -> Routes:
        return {
            "GET": ("s3_get_object", self._get),
            "HEAD": ("s3_head_object", self._get),
            "PUT": ("s3_put_object", self._put),
            "DELETE": ("s3_delete_object", self._delete),
        }

    # -- reading ------------------------------------------------------------------------------------

    def try_hits(self, connection: Connection, head: bytes) -> bool:
        """Answers a GET at once, if all of it is at hand; for listeners that ask nobody who they are."""
        if not head.startswith(b"GET /"):
            return False
        path = self._targets.get(head[4 : head.find(b" HTTP/1.1\r\n")])
        if path is None:
            return False
        began = time.perf_counter()
        info = self._facts.known(path)
        fields = head.lower()
        if info is None or b"\r\nif-" in fields or b"\r\nconnection: close" in fields:
            return False
        at = fields.find(b"\r\nrange:")
        header = None
        if at >= 0:
            end = fields.find(b"\r\n", at + 8)
            header = fields[at + 8 : end if end >= 0 else len(fields)].decode("latin-1")
        try:
            answer = _ranged(info, header)
        except RangeNotSatisfiable:
            return False
        items = self._files.at_hand(info, answer.start, answer.stop)
        if items is None:
            return False
        lines = [f"HTTP/1.1 {'206 Partial Content' if answer.status == 206 else '200 OK'}", *answer.headers]
        lines.append(f"Content-Length: {answer.stop - answer.start}\r\n\r\n")
        connection.send("\r\n".join(lines).encode("latin-1"), *items)
        self._metrics.observe("s3_get_object", "ok", time.perf_counter() - began)
        return True

    async def _get(self, request: Request, target: Target) -> None:
        if target.key.endswith("/"):
            raise FileNotFoundError(errno.ENOENT, "a directory is no object", target.path)
        path = normalize_path(target.path)
        overrides = _overrides(target)

        def plan(info: FileInfo) -> Answer:
            if not _conditions_hold(request, info):
                return Answer(0, 0, 304, (f"ETag: {etag(info)}", f"Last-Modified: {http_time(info.mtime)}"))
            part = target.query.get("partNumber")
            if part is not None and part != "1":
                raise S3Error("InvalidPartNumber", f"part {part[:20]!r}: every file here is one part")
            header = request.headers.get("range") or ("bytes=0-" if part and info.size else None)
            return _ranged(info, header, overrides)

        await self._files.send(request, path, plan)
        if request.method == "GET" and not request.raw_query:
            if len(self._targets) >= _MAX_TARGETS:
                self._targets.clear()
            self._targets[request.target.encode("ascii")] = path

    # -- changes ------------------------------------------------------------------------------------

    async def _put(self, request: Request, target: Target) -> None:
        target.caller.require_write()
        if "if-none-match" in request.headers or "if-match" in request.headers:
            raise S3Error(
                "NotImplemented", "conditional writes: the stores behind the mounts have none in common"
            )
        if "x-amz-copy-source" in request.headers:
            await self._copy(request, target)
            return
        if target.key.endswith("/"):
            async for _ in content_of(request, target.caller.signed):
                raise S3Error(
                    "InvalidArgument", "a key that ends in a slash is a directory, and has no content"
                )
            await self._in_thread(self._changes.make_directory, target.path)
            await request.respond(200)
            return
        mount, relative = self._stores.writable(normalize_path(target.path))
        with self._metrics.store_request(mount.name, "write"):
            store = await self._in_thread(self._stores.store, mount)
            writer = await self._in_thread(store.open_writer, relative)
            info = await upload(content_of(request, target.caller.signed), writer, self._executor)
        self._facts.forget(target.path)
        await request.respond(200, headers=[f"ETag: {etag(info)}"])

    async def _copy(self, request: Request, target: Target) -> None:
        source = unquote(request.headers["x-amz-copy-source"].partition("?")[0])
        source = normalize_path("/" + source.removeprefix("/"))
        place = normalize_path(target.path)

        def copy() -> FileInfo:
            self._changes.copy_file(source, place)
            return self._stores.info(place)

        info = await asyncio.get_running_loop().run_in_executor(self._copies, copy)
        self._facts.forget(place)
        parts = (text("LastModified", iso_time(info.mtime)), text("ETag", etag(info)))
        await request.respond(200, document("CopyObjectResult", *parts), content_type="application/xml")

    async def _delete(self, request: Request, target: Target) -> None:
        target.caller.require_write()
        await self.delete(target.path, directory=target.key.endswith("/"))
        await request.respond(204)

    async def delete(self, path: str, *, directory: bool) -> None:
        """As S3: what is not there is fine. A directory goes only by a key with a slash, if it is empty."""
        path = normalize_path(path)
        self._stores.writable(path)

        def work() -> None:
            try:
                if self._stores.info(path).is_dir == directory:
                    self._stores.delete(path)
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError as exc:
                if exc.errno != errno.ENOTEMPTY:
                    raise

        await self._in_thread(work)
        self._facts.forget(path)

    async def _in_thread(self, work: Callable[..., V], *args: Any) -> V:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


def _ranged(info: FileInfo, header: str | None, overrides: tuple[str, ...] = ()) -> Answer:
    """Raises RangeNotSatisfiable."""
    span = parse_range(header, info.size)
    headers = [
        f"ETag: {etag(info)}",
        f"Last-Modified: {http_time(info.mtime)}",
        "Accept-Ranges: bytes",
        *(overrides or ("Content-Type: binary/octet-stream",)),
    ]
    if span is None:
        return Answer(0, info.size, 200, tuple(headers), exact=True)
    headers.append(f"Content-Range: bytes {span[0]}-{span[1] - 1}/{info.size}")
    return Answer(*span, 206, tuple(headers), exact=True)


def _overrides(target: Target) -> tuple[str, ...]:
    """Headers that a request may choose: `response-content-type` and others."""
    chosen = []
    for name in _OVERRIDES:
        value = target.query.get(f"response-{name}")
        if value is not None and value.isprintable():
            chosen.append(f"{name.title()}: {value}")
    return tuple(chosen)


def _conditions_hold(request: Request, info: FileInfo) -> bool:
    """False asks for 304. Raises S3Error where another version was meant (RFC 9110 section 13)."""
    tag = etag(info)
    wanted = request.headers.get("if-match")
    if wanted is not None and not _matches(wanted, tag):
        raise S3Error("PreconditionFailed", "the file has another version now")
    known = request.headers.get("if-none-match")
    return known is None or not _matches(known, tag)


def _matches(header: str, tag: str) -> bool:
    return any(each.strip() in ("*", tag, tag.strip('"')) for each in header.split(","))
