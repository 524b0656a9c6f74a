"""fsspec's own caches over the same store by HTTP: files on this host's disk, for one host alone."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.peers.peer import Peer, Served

if TYPE_CHECKING:
    from benchmarks.scene import Scene

_BLOCK = 1 << 20


@contextlib.contextmanager
def _serve(scene: Scene, *, protocol: str) -> Iterator[Served]:
    home = scene.home / protocol
    shutil.rmtree(home, ignore_errors=True)
    url = f"{scene.nginx.url}/{scene.names['big'][0]}"
    options = {"protocol": protocol, "url": url, "cache": str(home)}
    yield Served(options, misses=scene.nginx.requests)


def _peer(protocol: str, what: str) -> Peer:
    return Peer(
        f"fsspec {protocol}", protocol, __name__, what, partial(_serve, protocol=protocol),
        rival="kara_file_host", requirements=("fsspec==2026.9.0", "aiohttp==3.14.5"),
    )  # fmt: skip


PEERS = (
    _peer("blockcache", "blocks of 1 MiB in a sparse file that is mapped; an open file is read"),
    _peer("filecache", "the whole file on disk; an open file is read"),
    _peer("simplecache", "the whole file on disk, nothing written down about it; an open file is read"),
)


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        import fsspec

        fs = fsspec.filesystem(options["protocol"], target_protocol="http", cache_storage=options["cache"])
        more = {"block_size": _BLOCK} if options["protocol"] == "blockcache" else {}
        self._file = fs.open(options["url"], "rb", **more)

    def read(self, length: int, start: int) -> bytes:
        self._file.seek(start)
        found: bytes = self._file.read(length or -1)
        return found
