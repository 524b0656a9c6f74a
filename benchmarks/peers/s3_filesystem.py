"""s3fs without a cache: what people use who open s3:// through fsspec."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import seaweed
from benchmarks.peers.peer import Peer

PEER = Peer(
    "s3fs, direct", "s3fs", __name__, "cat_file with start and end, SeaweedFS on this machine",
    seaweed.serve, rival="kara_cat_tcp", requirements=("s3fs==2026.9.0",),
)  # fmt: skip


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        import s3fs

        client = {"endpoint_url": options["endpoint"]}
        self._fs = s3fs.S3FileSystem(client_kwargs=client, config_kwargs={"s3": {"addressing_style": "path"}})
        self._path = f"{options['bucket']}/big.bin"

    def read(self, length: int, start: int) -> bytes:
        # by keyword: the second positional argument is the version
        found: bytes = self._fs.cat_file(self._path, start=start, end=start + length if length else None)
        return found
