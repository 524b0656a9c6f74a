from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import s3_servers
import services


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The url of an S3 server with the bucket `bucket`, which takes any key."""
    services.require_module("moto.server")
    services.require_module("boto3")
    with s3_servers.moto(tmp_path_factory.mktemp("moto"), "s") as url:
        with closing(s3_servers.client(url, s3_servers.KEY_ID, "s")) as s3:
            s3.create_bucket(Bucket="bucket")
        yield url
