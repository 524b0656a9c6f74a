"""A disk that fills up under a writer of rows, and one that can only be read: real file systems."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import services

from kara_cache import KaraStorage
from kara_cache.serialization import NoSerializer
from kara_cache.storage.rows.row_check import RowCheck
from kara_cache.storage.rows.row_dataset import RowDataset

pytestmark = pytest.mark.fault
RAW = {"serialization": NoSerializer()}
ROW = bytes(range(256)) * 40


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    services.require_root()
    mounted: list[Path] = []

    def mount_it(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode:
            services.missing("a file system that can be mounted")
        mounted.append(place)
        return place

    yield mount_it
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=60)


def read(storage: KaraStorage) -> list[bytes]:
    with storage.open("ns", "k", **RAW) as dataset:
        assert dataset.verify() == RowCheck(len(dataset), len(dataset), ())
        return list(dataset)


def fill(dataset: RowDataset) -> None:
    for _ in range(1000):
        dataset.write(ROW)


@pytest.mark.parametrize("flushed", [0, 3, 150])
def test_a_disk_that_fills_up(mount: Callable[[str], Path], flushed: int) -> None:
    """What was flushed is there and can be read; when there is room again, the next writer goes on."""
    disk = mount("size=4m")
    storage = KaraStorage(f"file://{disk}/db")
    filler = disk / "filler"
    filler.write_bytes(bytes(1 << 20))
    dataset = storage.open("ns", "k", "w", "1", **RAW)
    for _ in range(flushed):
        dataset.write(ROW)
    dataset.flush()
    with pytest.raises(OSError, match="No space left") as caught:
        fill(dataset)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match=f"rows after row {flushed} are not stored"):
        dataset.write(ROW)
    dataset.close()
    if flushed:
        assert read(storage) == [ROW] * flushed
    filler.unlink()
    with pytest.warns(RuntimeWarning, match="bytes of data without index entries"):
        dataset = storage.open("ns", "k", "w", "1", **RAW)
    with dataset:
        dataset.write(b"next")
    assert read(storage) == [ROW] * flushed + [b"next"]


def test_a_disk_that_can_only_be_read(mount: Callable[[str], Path]) -> None:
    disk = mount("size=4m")
    storage = KaraStorage(f"file://{disk}/db")
    with storage.open("ns", "k", "w", "1", **RAW) as dataset:
        dataset.write(ROW)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
    assert read(storage) == [ROW]
    with pytest.raises(OSError, match="Read-only file system"):
        storage.open("ns", "k", "w")
