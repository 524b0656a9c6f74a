"""The requests of a multipart upload."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from kara_cache.errors import KaraError
from kara_cache.mount import normalize_path
from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.s3_body import content_of
from kara_worker.alluxio.s3_errors import S3Error, as_s3_error
from kara_worker.alluxio.s3_target import Routes, Target
from kara_worker.alluxio.s3_uploads import Part, S3Uploads, Upload, join
from kara_worker.alluxio.s3_xml import document, element, error_element, etag, iso_time, parse_parts, text
from kara_worker.file_facts import FileFacts
from kara_worker.http.request import Request
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores

_BODY_LIMIT = 4 << 20  # 10 000 parts with checksums
_PATIENCE_S = 5.0  # S3 sends spaces while it joins parts, so that clients do not give up


class S3Multipart:
    """Event loop only; store calls run in `executor`."""

    def __init__(
        self,
        stores: MountedStores,
        facts: FileFacts,
        uploads: S3Uploads,
        metrics: WorkerMetrics,
        executor: Executor,
    ) -> None:
        self._stores = stores
        self._facts = facts
        self._uploads = uploads
        self._metrics = metrics
        self._executor = executor

    def routes(self) -> Routes:
        return {
            "POST": ("s3_multipart", self._begin_or_complete),
            "PUT": ("s3_put_part", self._put_part),
            "GET": ("s3_list_parts", self._list_parts),
            "DELETE": ("s3_abort_multipart", self._abort),
        }

    async def _begin_or_complete(self, request: Request, target: Target) -> None:
        target.caller.require_write()
        if "uploads" not in target.query:
            await self._complete(request, target)
            return
        path = normalize_path(target.path)
        self._stores.writable(path)
        upload = self._uploads.begin(path)
        parts = (text("Bucket", target.bucket), text("Key", target.key), text("UploadId", upload.id))
        await _respond(request, document("InitiateMultipartUploadResult", *parts))

    async def _put_part(self, request: Request, target: Target) -> None:
        target.caller.require_write()
        if "x-amz-copy-source" in request.headers:
            raise S3Error("NotImplemented", "UploadPartCopy: copy the whole object")
        number = target.query.get("partNumber", "")
        if not number.isascii() or not number.isdigit():
            raise S3Error("InvalidArgument", f"partNumber {number[:20]!r}")
        part = await self._uploads.add(
            self._find(target), int(number), content_of(request, target.caller.signed)
        )
        await request.respond(200, headers=[f'ETag: "{part.etag}"'])

    async def _list_parts(self, request: Request, target: Target) -> None:
        found = self._find(target)
        parts = [
            element(
                "Part",
                text("PartNumber", part.number),
                text("LastModified", iso_time(part.uploaded)),
                text("ETag", f'"{part.etag}"'),
                text("Size", part.size),
            )
            for _, part in sorted(found.parts.items())
        ]
        head = (
            text("Bucket", target.bucket),
            text("Key", target.key),
            text("UploadId", found.id),
            text("IsTruncated", "false"),
        )
        await _respond(request, document("ListPartsResult", *head, *parts))

    async def _abort(self, request: Request, target: Target) -> None:
        target.caller.require_write()
        self._uploads.end(self._find(target))
        await request.respond(204)

    async def _complete(self, request: Request, target: Target) -> None:
        body = await request.body_bytes(_BODY_LIMIT)
        found = self._find(target)
        parts = self._uploads.chosen(found, parse_parts(body))
        task = asyncio.get_running_loop().create_task(self._join(found, parts))
        try:
            done, _ = await asyncio.wait({task}, timeout=_PATIENCE_S)
            if done:
                await _respond(request, _completed(target, await task))
                return
            await request.start(length=None, headers=["Content-Type: application/xml"])
            await request.write_chunk(b'<?xml version="1.0" encoding="UTF-8"?>\n')
            while not (await asyncio.wait({task}, timeout=_PATIENCE_S))[0]:
                await request.write_chunk(b" ")
            await request.write_chunk(_late(target, task))
            await request.finish()
        finally:
            task.cancel()

    async def _join(self, found: Upload, parts: list[Part]) -> FileInfo:
        mount, relative = self._stores.writable(found.path)
        loop = asyncio.get_running_loop()

        def work() -> FileInfo:
            return join(parts, self._stores.store(mount).open_writer(relative))

        with self._metrics.store_request(mount.name, "write"):
            info = await loop.run_in_executor(self._executor, work)
        self._facts.forget(found.path)
        self._uploads.end(found)
        return info

    def _find(self, target: Target) -> Upload:
        return self._uploads.find(target.query.get("uploadId", ""), normalize_path(target.path))


def _completed(target: Target, info: FileInfo) -> bytes:
    parts = (text("Bucket", target.bucket), text("Key", target.key), text("ETag", etag(info)))
    return document("CompleteMultipartUploadResult", *parts)


def _late(target: Target, task: asyncio.Task[FileInfo]) -> bytes:
    """The outcome, when the status is out already; S3 puts an error there too, and SDKs look for it."""
    try:
        info = task.result()
    except (KaraError, OSError, ValueError) as exc:
        error = as_s3_error(exc)
        return error_element(error, target.key, "").encode()
    return _completed(target, info).partition(b"\n")[2]


async def _respond(request: Request, body: bytes) -> None:
    await request.respond(200, body, content_type="application/xml")
