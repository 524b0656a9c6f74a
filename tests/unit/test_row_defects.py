"""What went wrong in the published package (its defects 1 to 12), and does not here.

Number 11 is about objects: tests/cluster/test_storage_objects.py.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kara_cache import KaraStorage
from kara_cache.serialization import NoSerializer
from kara_cache.storage.location import open_location
from kara_cache.storage.rows.row_dataset import RowDataset
from kara_cache.storage.versions import publish_version, read_meta

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
RAW = {"serialization": NoSerializer()}


@pytest.fixture
def storage(tmp_path: Path) -> KaraStorage:
    return KaraStorage(f"file://{tmp_path}")


def write(storage: KaraStorage, rows: list[Any], version: str = "1", **options: Any) -> None:
    with storage.open("ns", "k", "w", version, **options) as dataset:
        for row in rows:
            dataset.write(row)


def killed(storage: KaraStorage, *, flush: bool) -> None:
    """A writer that ends in the middle, three megabytes after its last flush."""
    child = os.fork()
    if not child:
        dataset = storage.open("ns", "k", "w", "1", **RAW)
        dataset.write(b"before")
        if flush:
            dataset.flush()
        for _ in range(30):
            dataset.write(bytes(100_000))
        os._exit(9)
    assert os.waitpid(child, 0)[1] == 9 << 8


def test_1_the_next_writer_does_not_swallow_what_a_killed_one_left(storage: KaraStorage) -> None:
    killed(storage, flush=True)
    with pytest.warns(RuntimeWarning, match=r"cut off \d{7} bytes of data"):
        write(storage, [b"after"], **RAW)
    with storage.open("ns", "k", **RAW) as dataset:
        assert list(dataset) == [b"before", b"after"]


def test_2_flush_keeps_small_tails(storage: KaraStorage) -> None:
    killed(storage, flush=True)
    with storage.open("ns", "k", **RAW) as dataset:
        assert list(dataset) == [b"before"]


def test_3_no_index_entry_is_written_before_its_data(storage: KaraStorage, tmp_path: Path) -> None:
    killed(storage, flush=False)
    files = tmp_path / "row" / "ns" / "k" / "1"
    assert (files / "data" / "0.blk").stat().st_size > 1_000_000  # a second one is under way
    assert not (files / "index" / "0.blk").exists()
    with pytest.raises(ValueError, match="not exists"):
        storage.open("ns", "k")


def test_4_negative_indices_count_from_the_end(storage: KaraStorage) -> None:
    write(storage, [0, 1, 2, 3])
    with storage.open("ns", "k") as dataset:
        assert [dataset[-1], dataset[-4], dataset.slice(1, 2)[-1]] == [3, 0, 2]
        with pytest.raises(IndexError):
            dataset[-5]
        with pytest.raises(IndexError):
            dataset.slice(1, 2)[-3]


def test_5_an_empty_row_at_the_end_is_a_row(storage: KaraStorage) -> None:
    write(storage, [b"a", b""], **RAW)
    with storage.open("ns", "k", **RAW) as dataset:
        assert [dataset[1], dataset[-1], dataset.pread(1), dataset[:]] == [b"", b"", b"", [b"a", b""]]


def test_6_positions_in_a_window_are_those_of_the_window(storage: KaraStorage) -> None:
    write(storage, list(range(20)))
    with storage.open("ns", "k") as dataset:
        part = dataset.slice(5, 10)
        assert part.seek(3) == part.tell() == 3
        assert part.read() == 8
        assert list(part.slice(0, 100)) == list(range(5, 15))
        assert len(dataset.slice(50)) == 0
        with pytest.raises(ValueError, match="a window begins at 0"):
            dataset.slice(-2)


def test_7_a_row_costs_no_open_file(storage: KaraStorage) -> None:
    """Segments are mapped when it is opened."""
    write(storage, list(range(1000)), max_file_size=100)
    with storage.open("ns", "k") as dataset:
        before = os.listdir("/proc/self/fd")
        assert [dataset[i] for i in range(1000)] == list(range(1000))
        assert os.listdir("/proc/self/fd") == before


def _publish(url: str, name: str) -> None:
    publish_version(open_location(url), "row", "ns", "k", name)


def test_8_no_version_is_lost_when_many_publish(tmp_path: Path) -> None:
    url, names = f"file://{tmp_path}", {str(i) for i in range(24)}
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(_publish, [(url, name) for name in names], chunksize=1)
        pool.close()
        pool.join()
    assert set(read_meta(open_location(url), "row", "ns", "k")["versions"]) == names


def test_8_opening_writes_nothing_before_it_is_valid(storage: KaraStorage) -> None:
    write(storage, [1])
    before = storage.get_row_meta("ns", "k")
    with pytest.raises(ValueError, match="Unknown mode `rw`"):
        storage.open("ns", "k", "rw", "2")
    with pytest.raises(BlockingIOError), storage.open("ns", "k", "w", "2"):
        storage.open("ns", "k", "w", "2")
    assert storage.get_row_meta("ns", "k") == {**before, "latest": "2", "versions": ["1", "2"]}


def test_8_readers_see_the_old_versions_or_the_new_ones(storage: KaraStorage) -> None:
    write(storage, [1])
    ended = threading.Event()

    def publish() -> None:
        for i in range(60):
            publish_version(storage.location, "row", "ns", "k", str(i))
        ended.set()

    writer = threading.Thread(target=publish)
    writer.start()
    while not ended.is_set():
        meta = storage.get_row_meta("ns", "k")
        assert meta["latest"] in meta["versions"]
    writer.join(60)


def _tell(dataset: RowDataset) -> tuple[int, int]:
    dataset.read()
    return dataset.tell(), dataset.size()


def test_9_tell_in_another_process(storage: KaraStorage) -> None:
    write(storage, [1, 2])
    with storage.open("ns", "k") as dataset, multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_tell, (dataset,)).get(60) == (1, 2)
        pool.close()
        pool.join()


def test_10_a_constructor_that_failed_is_quiet(
    storage: KaraStorage, capfd: pytest.CaptureFixture[str]
) -> None:
    for mode in ("r", "w", "x"):
        with pytest.raises(ValueError):
            storage.open("ns", "missing", mode)
    assert capfd.readouterr() == ("", "")


def test_12_importing_leaves_the_start_method_alone() -> None:
    code = """
import multiprocessing, kara_cache
kara_cache.KaraStorage
assert multiprocessing.get_start_method(allow_none=True) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_12_a_process_with_an_open_data_set_ends(storage: KaraStorage, tmp_path: Path) -> None:
    write(storage, [1, 2, 3])
    code = f"""
import multiprocessing, kara_cache
ds = kara_cache.KaraStorage("file://{tmp_path}").open("ns", "k")
assert ds.read() == 1
if __name__ == "__main__":
    pool = multiprocessing.get_context("fork").Pool(1)
    assert pool.apply(len, (ds,)) == 3
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
