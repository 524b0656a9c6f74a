"""MosaicML streaming (MDS): shards of 64 MiB and its own StreamingDataset."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

BATCH_ROWS = 256


def _stand_in(name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(names)
    sys.modules[name] = module


# `streaming` imports two names of torchvision for image data sets. The published torchvision needs CUDA's
# torch; beside the CPU build its import fails, so these two are stood in for. Rows do not touch them.
_stand_in("torchvision", __version__="0")
_stand_in("torchvision.datasets", VisionDataset=object)
_stand_in("torchvision.transforms")
_stand_in("torchvision.transforms.functional", to_tensor=None)

import streaming  # noqa: E402
from streaming import MDSWriter, StreamingDataset  # noqa: E402


def write(rows: Iterator[bytes], home: str) -> None:
    with MDSWriter(out=f"{home}/mds", columns={"row": "bytes"}, size_limit=1 << 26) as writer:
        for row in rows:
            writer.write({"row": row})


class Reader:
    def __init__(self, home: str, decode: Any) -> None:
        self._home = home
        self._decode = decode
        self._rows = self.dataset(False)

    def __len__(self) -> int:
        return int(self._rows.size)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def shuffled(self) -> Iterator[Any]:
        return iter(self.dataset(True))

    def dataset(self, shuffle: bool) -> Any:
        streaming.base.util.clean_stale_shared_memory()
        return _Rows(self._home, self._decode, shuffle)


class _Rows(StreamingDataset):  # type: ignore[misc]
    def __init__(self, home: str, decode: Any, shuffle: bool) -> None:
        super().__init__(local=f"{home}/mds", shuffle=shuffle, batch_size=BATCH_ROWS)
        self._decodes = decode is not None

    def __getitem__(self, index: Any) -> Any:
        row = super().__getitem__(index)["row"]
        if not self._decodes:
            return row
        import msgspec

        return msgspec.json.decode(row)
