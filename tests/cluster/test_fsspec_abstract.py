"""fsspec's own suite for file systems, over a real worker."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

import fsspec.tests.abstract as abstract
import pytest

from kara_cache.filesystem import KaraFileSystem
from kara_worker.testing.cluster import LocalCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("abstract")
    (directory / "disk").mkdir()
    mounts = {"disk": f"file://{directory}/disk", "memory": "memory://store"}
    # one worker, because the store in memory is in its memory
    with LocalCluster(1, mounts=mounts) as running:
        yield running
        KaraFileSystem(**running.client_options).close()


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture(params=["disk", "memory"])
    def mount(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def fs(self, cluster: LocalCluster) -> KaraFileSystem:
        return KaraFileSystem(**cluster.client_options, skip_instance_cache=True)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join

    @pytest.fixture
    def fs_path(self, mount: str) -> str:
        return f"{mount}/tests"


class TestCopy(abstract.AbstractCopyTests, Fixtures):
    pass


class TestGet(abstract.AbstractGetTests, Fixtures):
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):
    pass


class TestOpen(abstract.AbstractOpenTests, Fixtures):
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):
    pass
