"""s3torchconnector without a cache: the AWS runtime behind PyTorch's data sets."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import seaweed
from benchmarks.peers.peer import Peer

PEER = Peer(
    "s3torchconnector, direct", "s3torchconnector", __name__, "its range reader and its whole-object reader, "
    "SeaweedFS on this machine",
    seaweed.serve, requirements=("s3torchconnector==1.5.0", "torch==2.13.0", "numpy<2.3"),
)  # fmt: skip


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        from s3torchconnector import S3ClientConfig, S3MapDataset
        from s3torchconnector.s3reader import S3ReaderConstructor

        uri, endpoint = f"s3://{options['bucket']}/big.bin", options["endpoint"]

        def data_set(constructor: Any) -> Any:
            return S3MapDataset.from_objects(
                [uri], region="us-east-1", endpoint=endpoint, reader_constructor=constructor,
                s3client_config=S3ClientConfig(force_path_style=True),
            )  # fmt: skip

        self._whole = data_set(S3ReaderConstructor.sequential())
        # without its buffer, which would fetch 8 MiB for each of these reads
        self._ranged = data_set(S3ReaderConstructor.range_based(buffer_size=0))

    def read(self, length: int, start: int) -> bytes:
        found: bytes
        if not length:
            found = self._whole[0].read()
            return found
        reader = self._ranged[0]
        reader.seek(start)
        found = reader.read(length)
        return found
