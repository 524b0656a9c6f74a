"""Negative control: pages are damaged on disk, and the client of these benchmarks must notice."""

from __future__ import annotations

import mmap
from pathlib import Path

from benchmarks.scene import KIB, MIB, Scene, warm
from benchmarks.table_row import Row, Target

_TURNED = 64 * KIB + 100  # the byte of a page in which a bit is turned


def run(scene: Scene) -> list[Row]:
    return [
        _row(scene, "remote", scene.names["4MiB"][0], MIB, local=False),
        _row(scene, "local", scene.names["4MiB"][1], 4 * KIB, local=True),
    ]


def _row(scene: Scene, key: str, name: str, length: int, *, local: bool) -> Row:
    """One bit of every page of a file is turned; each must be found out, and the right bytes returned."""
    path, data = f"/near/{name}", (scene.files / name).read_bytes()
    with scene.client(local_reads=local) as client:
        warm(client, [path])
        info = client.info(path)
        pages = len(data) // MIB
        damaged = sum(_damage(scene.worker.page_dir, data[at : at + MIB]) for at in range(0, len(data), MIB))
        if damaged != pages:
            raise RuntimeError(f"{damaged} of {pages} pages of {path} found on disk")
        noticed = 0
        for at in range(0, len(data), MIB):
            before = client.metrics.fallbacks.get("corrupt", 0)
            start = at + 64 * KIB
            if length == MIB:
                start = at
            got = client.read(info, start, length)
            if got != data[start : start + length]:
                raise RuntimeError(f"WRONG BYTES of {path} at {start} reached the caller")
            noticed += client.metrics.fallbacks.get("corrupt", 0) > before
    what = f"control: damaged pages noticed by a {key} reader, all bytes right"
    return Row(f"control_corrupt_{key}", what, [noticed / pages], Target(1))


def _damage(page_dir: Path, content: bytes) -> bool:
    """Turns one bit of the page that has this content, in a file of its own or among others in a segment."""
    for file in page_dir.rglob("*"):
        if not file.is_file() or file.stat().st_size < len(content):
            continue
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as pages:
            at = pages.find(content[:64])
            if at >= 0:
                pages[at + _TURNED] ^= 1
                return True
    return False
