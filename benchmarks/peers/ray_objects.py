"""Ray's object store: shared memory of one node, values put and gotten by reference."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.peers.peer import Peer, Served

if TYPE_CHECKING:
    from benchmarks.scene import Scene


@contextlib.contextmanager
def _serve(scene: Scene) -> Iterator[Served]:
    """The store lives as long as the process that reads: it starts it."""
    yield Served({"file": str(scene.files / scene.names["big"][0]), "temp": str(scene.home / "ray")})


PEER = Peer(
    "Ray's object store 2.60", "ray", __name__, "one node, 1 GiB; get() of a numpy array of bytes: a view of "
    "shared memory, not copied, not verified", _serve, rival="kara_host",
    requirements=("ray==2.60.0", "numpy<2.3"),
)  # fmt: skip


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        import numpy
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            num_cpus=1, include_dashboard=False, object_store_memory=1 << 30, log_to_driver=False,
            _temp_dir=options["temp"], configure_logging=False,
        )  # fmt: skip
        self._file, self._put, self._get, self._numpy = options["file"], ray.put, ray.get, numpy
        self._objects: dict[tuple[int, int], Any] = {}

    def prepare(self, length: int, places: list[int]) -> None:
        self._objects.clear()  # releases those of the last length
        with open(self._file, "rb") as file:
            for start in places:
                file.seek(start)
                value = self._numpy.frombuffer(file.read(length or -1), dtype=self._numpy.uint8)
                self._objects[length, start] = self._put(value)

    def read(self, length: int, start: int) -> Any:
        return self._get(self._objects[length, start])
