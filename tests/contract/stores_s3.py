"""The S3 store for the contract suite, against moto and against SeaweedFS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3_servers
from stores import SECRET, Factory, Site

from kara_cache.ufs import open_store


def s3_options(url: str, **more: Any) -> dict[str, Any]:
    return {
        "endpoint_url": url,
        "access_key_id": s3_servers.KEY_ID,
        "secret_access_key": SECRET,
        "addressing_style": "path",
        "region": "us-east-1",
        **more,
    }


@contextmanager
def s3(root: Path, *, server: str) -> Iterator[Site]:
    url = s3_servers.address(server)
    prefix = f"pre fix/{uuid4().hex}"  # a bucket for each test takes SeaweedFS a second
    behind = s3_servers.client(url, s3_servers.KEY_ID, SECRET)
    with (
        closing(behind),
        closing(open_store(f"s3://{s3_servers.BUCKET}/{prefix}", s3_options(url))) as store,
    ):
        yield Site(
            "s3",
            store,
            lambda path, data: put(behind, f"{prefix}/{path}", data),
            lambda path: behind.delete_object(Bucket=s3_servers.BUCKET, Key=f"{prefix}/{path}"),
        )


def put(behind: Any, key: str, data: bytes) -> None:
    behind.put_object(Bucket=s3_servers.BUCKET, Key=key, Body=data)


SERVERS = {"s3-moto": s3_servers.MOTO, "s3-seaweed": s3_servers.SEAWEED}
STORES: dict[str, Factory] = {kind: partial(s3, server=server) for kind, server in SERVERS.items()}
MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = dict.fromkeys(STORES, (pytest.mark.s3,))
WRONG_IN_THE_SERVER = {  # kind and file name: what is not the store's fault
    ("s3-seaweed", "back\\slash"): "SeaweedFS 4.48 lists a backslash in a key as a slash",
}
