"""What the Alluxio documentation takes for granted: a cluster with etcd, and an S3 bucket behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3_servers

from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer

CLUSTER_NAME = "ai-alluxio"  # what Alluxio's operator calls a cluster `alluxio` in the namespace `ai`
SECRET = "alluxio-documents"
BUCKET = "bucket"


@dataclass(frozen=True)
class AlluxioPlace:
    """`s3://bucket` through three workers that etcd knows."""

    cluster: LocalCluster
    etcd: EtcdServer
    s3: Any  # boto3's client, for what happens behind the cache
    endpoint_url: str

    @property
    def etcd_port(self) -> int:
        return self.etcd.port

    @property
    def s3_options(self) -> dict[str, Any]:
        """As s3fs takes them."""
        return {
            "key": s3_servers.KEY_ID,
            "secret": SECRET,
            "client_kwargs": {"endpoint_url": self.endpoint_url},
        }

    def put(self, key: str, body: bytes) -> str:
        """Its url."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        """What the store holds."""
        body: bytes = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", ())]


@contextmanager
def alluxio_place(root: Path, *, workers: int = 3, **settings: Any) -> Iterator[AlluxioPlace]:
    """Real workers, a real etcd, and moto. Skips where one of them is not installed."""
    with s3_servers.running([s3_servers.MOTO], root, SECRET):
        url = s3_servers.address(s3_servers.MOTO)
        s3 = s3_servers.client(url, s3_servers.KEY_ID, SECRET)
        s3.create_bucket(Bucket=BUCKET)
        options = {
            "endpoint_url": url,
            "access_key_id": s3_servers.KEY_ID,
            "secret_access_key": "env:ALLUXIO_PLACE_SECRET",
        }
        mounts = {"s3": {"url": f"s3://{BUCKET}", "options": options}}
        with EtcdServer() as etcd:
            with LocalCluster(
                workers,
                mounts=mounts,
                etcd=etcd,
                environment={"ALLUXIO_PLACE_SECRET": SECRET},
                cluster_name=CLUSTER_NAME,
                **settings,
            ) as cluster:
                yield AlluxioPlace(cluster, etcd, s3, url)
        s3.close()
