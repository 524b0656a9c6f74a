"""The OSS store for the contract suite: the real client library against our server, V4 and V1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from services import require_module
from stores import SECRET, Capabilities, Factory, Site

from kara_cache.ufs import open_store
from kara_worker.testing.oss_server import OssServer

KEY_ID = "test-key-id"
TOKEN = "sts-" + SECRET  # a secret of its own, and the first one is part of it: one search finds both


def oss_options(server: OssServer, **more: Any) -> dict[str, Any]:
    """What an operator writes for a store on this server."""
    token = server.credentials.security_token
    return {
        "access_key_id": server.credentials.key_id,
        "access_key_secret": server.credentials.key_secret,
        "region": server.region,
        "use_ssl": "false",
        **({"security_token": token} if token else {}),
        **more,
    }


@contextmanager
def oss(root: Path, *, signature: str, token: str | None = None) -> Iterator[Site]:
    require_module("oss2")
    with OssServer(key_id=KEY_ID, key_secret=SECRET, security_token=token, buckets=["bucket"]) as server:
        store = open_store(f"oss://{server.host}/bucket/pre fix", oss_options(server, signature=signature))
        yield Site(
            f"oss-{signature}",
            store,
            lambda path, data: put(server, path, data),
            lambda path: server.objects.delete("bucket", f"pre fix/{path}"),
            Capabilities(appends=True),
            lambda: len(server.requests.all()),
        )
        store.close()


def put(server: OssServer, path: str, data: bytes) -> None:
    server.objects.put("bucket", f"pre fix/{path}", data)


STORES: dict[str, Factory] = {
    "oss-v4": partial(oss, signature="v4", token=TOKEN),
    "oss-v1": partial(oss, signature="v1"),
}
# oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
_UTCNOW = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = dict.fromkeys(STORES, (pytest.mark.oss, _UTCNOW))
