"""Mounts as S3 buckets: which there are, what is in them, deleting many keys."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor

from kara_worker.alluxio.s3_body import content_of
from kara_worker.alluxio.s3_errors import S3Error, as_s3_error
from kara_worker.alluxio.s3_listing import ListRequest, S3Listing, listing_document
from kara_worker.alluxio.s3_objects import S3Objects
from kara_worker.alluxio.s3_target import Routes, Target
from kara_worker.alluxio.s3_uploads import S3Uploads
from kara_worker.alluxio.s3_xml import document, element, iso_time, parse_delete, text
from kara_worker.http.request import Request
from kara_worker.mounted_stores import MountedStores

REGION = "us-east-1"  # what clients that are not told assume
_BODY_LIMIT = 4 << 20  # 1000 keys of 1024 bytes, escaped


class S3Buckets:
    """Event loop only; store calls run in `executor`."""

    def __init__(
        self, stores: MountedStores, objects: S3Objects, uploads: S3Uploads, executor: Executor
    ) -> None:
        self._stores = stores
        self._objects = objects
        self._uploads = uploads
        self._executor = executor
        self._listing = S3Listing(stores)

    def routes(self, query: Mapping[str, str]) -> Routes:
        if "location" in query:
            return {"GET": ("s3_bucket_location", self._location)}
        if "versioning" in query:
            return {"GET": ("s3_bucket_versioning", self._versioning)}
        if "uploads" in query:
            return {"GET": ("s3_list_uploads", self._list_uploads)}
        if "delete" in query:
            return {"POST": ("s3_delete_objects", self._delete_objects)}
        return {
            "GET": ("s3_list_objects", self._list),
            "HEAD": ("s3_head_bucket", self._head),
            "PUT": ("s3_other", self._create),
            "DELETE": ("s3_other", self._remove),
        }

    async def list_buckets(self, request: Request, target: Target) -> None:
        mounts = [
            element("Bucket", text("Name", mount.name), text("CreationDate", iso_time(None)))
            for mount in self._stores.mounts
        ]
        owner = element("Owner", text("ID", "kara"), text("DisplayName", "kara"))
        await _respond(request, document("ListAllMyBucketsResult", owner, element("Buckets", *mounts)))

    async def _head(self, request: Request, target: Target) -> None:
        await request.respond(200, headers=[f"x-amz-bucket-region: {REGION}"])

    async def _location(self, request: Request, target: Target) -> None:
        await _respond(request, document("LocationConstraint"))  # empty stands for us-east-1

    async def _versioning(self, request: Request, target: Target) -> None:
        await _respond(request, document("VersioningConfiguration"))  # empty stands for never enabled

    async def _create(self, request: Request, target: Target) -> None:
        raise S3Error("BucketAlreadyOwnedByYou", "a bucket is a mount, and mounts are the operator's")

    async def _remove(self, request: Request, target: Target) -> None:
        raise S3Error("AccessDenied", "a bucket is a mount, and mounts are the operator's")

    async def _list(self, request: Request, target: Target) -> None:
        assert target.mount is not None
        wanted = ListRequest.parse(target.query)
        loop = asyncio.get_running_loop()
        page = await loop.run_in_executor(self._executor, self._listing.page, target.mount, wanted)
        await _respond(request, listing_document(target.bucket, wanted, page))

    async def _list_uploads(self, request: Request, target: Target) -> None:
        cut = len(target.bucket) + 2
        rows = [
            element(
                "Upload",
                text("Key", upload.path[cut:]),
                text("UploadId", upload.id),
                text("Initiated", iso_time(upload.began)),
            )
            for upload in self._uploads.below(f"/{target.bucket}/{target.query.get('prefix', '')}")
        ]
        head = (text("Bucket", target.bucket), text("IsTruncated", "false"))
        await _respond(request, document("ListMultipartUploadsResult", *head, *rows))

    async def _delete_objects(self, request: Request, target: Target) -> None:
        target.caller.require_write()
        parts = bytearray()
        async for piece in content_of(request, target.caller.signed):
            parts += piece
            if len(parts) > _BODY_LIMIT:
                raise S3Error("MalformedXML", f"a body of more than {_BODY_LIMIT} bytes")
        keys, quiet = parse_delete(bytes(parts))
        rows = []
        for key in keys:
            try:
                directory = key.endswith("/")
                await self._objects.delete(f"/{target.bucket}/{key.removesuffix('/')}", directory=directory)
            except (OSError, ValueError) as exc:  # noqa: PERF203 - a call to a store each
                error = as_s3_error(exc)
                rows.append(
                    element("Error", text("Key", key), text("Code", error.code), text("Message", error))
                )
            else:
                if not quiet:
                    rows.append(element("Deleted", text("Key", key)))
        await _respond(request, document("DeleteResult", *rows))


async def _respond(request: Request, body: bytes) -> None:
    await request.respond(200, body, content_type="application/xml")
