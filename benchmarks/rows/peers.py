"""Whom we are compared with, and what each needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.published import InstallError, environment

_TORCH = "torch==2.13.0"  # without a version it brings CUDA
_DECODER = "msgspec==0.22.0"  # the fastest decoder of JSON; for all but kara-storage, which brings its own

OURS = "kara_cache"
LIMIT = "mmap (limit)"
LMDB = "LMDB"
PREDECESSOR = "kara-storage 2.1.5"


@dataclass(frozen=True)
class Peer:
    """A format and the packages it is measured with."""

    name: str
    module: str  # in benchmarks/rows/formats
    requirements: tuple[str, ...] = ()  # none: measured in our own environment

    def python(self) -> Path:
        """The interpreter that has it; InstallError where it cannot be had."""
        if not self.requirements:
            return Path(sys.executable)
        return environment(*self.requirements)


PEERS = (
    Peer(OURS, "as_kara"),
    Peer(LIMIT, "as_mmap"),
    Peer(LMDB, "as_lmdb", ("lmdb==3.0.0", _DECODER, _TORCH)),
    Peer(PREDECESSOR, "as_kara_storage", ("kara-storage==2.1.5", "protobuf<4", _TORCH)),
    Peer("array_record 0.8.6", "as_array_record", ("array_record==0.8.6", _DECODER, _TORCH)),
    Peer("litdata 0.2.76", "as_litdata", ("litdata==0.2.76", _DECODER, _TORCH)),
    Peer("MosaicML streaming 0.13.0", "as_mds", ("mosaicml-streaming==0.13.0", _DECODER, _TORCH)),
)

__all__ = ["LIMIT", "LMDB", "OURS", "PEERS", "PREDECESSOR", "InstallError", "Peer"]
