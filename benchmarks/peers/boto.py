"""boto3 without a cache: every read is a request to the S3 store."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import seaweed
from benchmarks.peers.peer import Peer

PEER = Peer(
    "boto3, direct", "boto3", __name__, "get_object with a Range, one connection, SeaweedFS on this machine",
    seaweed.serve, requirements=("boto3==1.44.5",),
)  # fmt: skip


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        import boto3
        from botocore.config import Config

        config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
        self._client = boto3.client("s3", endpoint_url=options["endpoint"], config=config)
        self._bucket = options["bucket"]

    def read(self, length: int, start: int) -> bytes:
        part = {"Range": f"bytes={start}-{start + length - 1}"} if length else {}
        found: bytes = self._client.get_object(Bucket=self._bucket, Key="big.bin", **part)["Body"].read()
        return found
