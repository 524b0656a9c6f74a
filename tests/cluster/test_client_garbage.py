"""What a client does over and over leaves nothing to the collector: with it off, memory stays as it is.

Training programs switch it off, since a collection stops them; and what waits for it holds the frames of an
error, with all the buffers in them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kara_cache.filesystem import KaraFileSystem
from kara_worker.testing.cluster import LocalCluster

TIMES = 20
FILES = [f"m/{number}" for number in range(10)]

Use = Callable[[KaraFileSystem], object]


@pytest.fixture(scope="module")
def fs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KaraFileSystem]:
    store = tmp_path_factory.mktemp("store")
    for name in FILES:
        (store / Path(name).name).write_bytes(os.urandom(20_000))
    (store / "large").write_bytes(os.urandom(9 << 20))
    with LocalCluster(2, mounts={"m": f"file://{store}"}) as cluster:
        made = KaraFileSystem(**cluster.client_options, skip_instance_cache=True)
        yield made
        made.close()


def missing(fs: KaraFileSystem) -> None:
    with suppress(FileNotFoundError):
        fs.cat_file("m/none")


def in_sequence(fs: KaraFileSystem) -> None:
    with fs.open("m/large") as file:
        while file.read(1 << 20):
            pass


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda fs: fs.cat_file("m/1"), id="file"),
        pytest.param(lambda fs: fs.cat_file("m/large", 5000, 9000), id="part"),
        pytest.param(lambda fs: fs.cat_file("m/large"), id="several connections"),
        pytest.param(lambda fs: fs.cat(FILES), id="files"),
        pytest.param(lambda fs: fs.cat_ranges(FILES, [5] * 10, [800] * 10), id="ranges"),
        pytest.param(in_sequence, id="in sequence"),
        pytest.param(lambda fs: fs.info("m/1"), id="info"),
        pytest.param(lambda fs: fs.exists("m/none"), id="exists"),
        pytest.param(missing, id="missing"),
        pytest.param(lambda fs: fs.ls("m", refresh=True), id="ls"),
        pytest.param(lambda fs: fs.pipe_file("m/written", b"abc"), id="write"),
    ],
)
def test_nothing_is_left_to_the_collector(fs: KaraFileSystem, use: Use) -> None:
    use(fs)
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            use(fs)
        assert gc.collect() < TIMES  # threads of the test run may leave a little
    finally:
        gc.enable()
