"""The S3-style data port: mounts are buckets, path style, over this worker's cache and stores.

Enough of the S3 API for boto3, s3fs, DuckDB's httpfs and s3torchconnector, and for `alluxiofs` 1.1,
which reads `GET /{mount}/{path}` with a Range. What needs more than files and listings (versions,
tags, policies) answers 501.
"""

from __future__ import annotations

import logging
import time
from secrets import token_hex

from kara_worker.alluxio.deadline import answered_within
from kara_worker.alluxio.s3_buckets import S3Buckets
from kara_worker.alluxio.s3_errors import S3Error, as_s3_error
from kara_worker.alluxio.s3_multipart import S3Multipart
from kara_worker.alluxio.s3_objects import S3Objects
from kara_worker.alluxio.s3_target import Handler, Routes, S3Access, Target
from kara_worker.alluxio.s3_xml import error_document
from kara_worker.http.request import Request
from kara_worker.http.server import Connection
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores

log = logging.getLogger(__name__)

# sub-resources that are neither files nor listings
_UNSUPPORTED = frozenset((
    "accelerate", "acl", "analytics", "attributes", "cors", "encryption", "intelligent-tiering",
    "inventory", "legal-hold", "lifecycle", "logging", "metrics", "notification", "object-lock",
    "ownershipControls", "policy", "policyStatus", "publicAccessBlock", "replication", "requestPayment",
    "restore", "retention", "select", "tagging", "torrent", "versions", "website",
))  # fmt: skip


class S3Port:
    """Implements `Application`. Event loop only."""

    def __init__(
        self,
        stores: MountedStores,
        access: S3Access,
        objects: S3Objects,
        multipart: S3Multipart,
        buckets: S3Buckets,
        metrics: WorkerMetrics,
        *,
        deadline_s: float,
    ) -> None:
        self._stores = stores
        self._access = access
        self._objects = objects
        self._multipart = multipart
        self._buckets = buckets
        self._metrics = metrics
        self._deadline_s = deadline_s
        self.draining = False

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        if self.draining or not self._access.open:
            return False
        return self._objects.try_hits(connection, head)

    async def handle(self, request: Request) -> None:
        began, name, result = time.monotonic(), "s3_other", "error"
        request_id = token_hex(8)
        try:
            if self.draining:
                raise S3Error("ServiceUnavailable", "this worker is draining: ask another one")
            target = self._target(request)
            name, handler = self._route(request, target)
            if request.method in ("GET", "HEAD"):
                await answered_within(self._deadline_s, request, handler(request, target))
            else:
                await handler(request, target)
            result = "ok"
        except ConnectionError:
            raise
        except Exception as exc:  # a request's top: what is foreseen has a code of its own
            if request.started:
                raise
            error = as_s3_error(exc)
            result = "client_error" if error.status < 500 else "error"
            if error.status >= 500 and error.status != 501:
                log.warning(
                    "%s %s: %s", request.method, request.path, exc, exc_info=error.code == "InternalError"
                )
            await self._refuse(request, error, request_id)
        finally:
            self._metrics.observe(name, result, time.monotonic() - began)

    def _target(self, request: Request) -> Target:
        """Raises S3Error: not allowed, or no such bucket."""
        caller = self._access.identify(request)
        bucket, _, key = request.path.removeprefix("/").partition("/")
        mount = self._stores.mounts.get(bucket) if bucket else None
        if bucket and mount is None:
            raise S3Error("NoSuchBucket", f"no mount {bucket[:100]!r}")
        return Target(mount, key, request.query, caller)

    def _route(self, request: Request, target: Target) -> tuple[str, Handler]:
        unsupported = _UNSUPPORTED.intersection(target.query)
        if unsupported:
            raise S3Error("NotImplemented", f"{request.method} of {', '.join(sorted(unsupported))}")
        if target.mount is None:
            routes: Routes = {"GET": ("s3_list_buckets", self._buckets.list_buckets)}
        elif not target.key:
            routes = self._buckets.routes(target.query)
        elif "uploadId" in target.query or "uploads" in target.query:
            routes = self._multipart.routes()
        else:
            routes = self._objects.routes()
        if request.method not in routes:
            raise S3Error("MethodNotAllowed", f"{request.method} is not allowed here")
        return routes[request.method]

    async def _refuse(self, request: Request, error: S3Error, request_id: str) -> None:
        body = error_document(error, request.path, request_id)
        headers = [f"x-amz-request-id: {request_id}"]
        if error.object_size is not None:
            headers.append(f"Content-Range: bytes */{error.object_size}")
        await request.respond(error.status, body, content_type="application/xml", headers=headers)
