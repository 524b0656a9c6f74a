from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from alluxio_places import AlluxioPlace, alluxio_place
from mounted import Mounted, mounted

from kara_cache.kara_tree import KaraTree


@pytest.fixture(scope="session")
def kara(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Two workers for all of the client libraries."""
    with mounted(tmp_path_factory.mktemp("clients"), workers=2) as found:
        yield found


@pytest.fixture
def place(kara: Mounted, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """An empty directory of the test's own: its url, and where it is on the disk behind."""
    directory = kara.directory / re.sub(r"\W+", "-", request.node.name)
    directory.mkdir()
    return f"kara://data/{directory.name}", directory


@pytest.fixture(scope="session")
def s3_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlluxioPlace]:
    """Three workers, etcd and an S3 bucket, with Alluxio's listener; a prefix of its own for each test."""
    with alluxio_place(tmp_path_factory.mktemp("s3"), alluxio_list_port=0) as found:
        yield found


@pytest.fixture
def filesystems_end_with_their_test() -> Iterator[None]:
    """For examples that make filesystems and, as readers do, leave them to the process."""
    yield
    for attachment in KaraTree._attachments.values():
        attachment.close()
