"""Images in a folder, local and cached: `python -m benchmarks.image_folder [--quick] [--out FILE]`.

Each image is opened, read and closed: from the local disk, through fsspec over TCP with a mount that is
immutable and with one that is revalidated at every open, from pages of the same host, and in batches of
`ObjectMap`. Everything is warm, the files on the disk as the pages in the cache. Then an epoch of a
DataLoader that decodes them. Rounds are interleaved; what counts are ratios to the local disk.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import fsspec
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.rounds import Meter, Rounds, interleave, process_cpu_s
from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.torch import ObjectMap
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.etcd_server import EtcdServer

IMAGES = 512  # of some 110 KB, as ImageNet's are on average
SIDE = 400  # pixels, of noise under a gradient: JPEG at this quality gives that size
BATCH = 32
LOADERS = 2
WAIT_S = 60.0

Read = Callable[[list[int]], object]


class Folder(Dataset[int]):
    """Images that are opened one by one, as `ImageFolder` of torchvision does."""

    def __init__(self, protocol: str, options: Mapping[str, Any], names: list[str]) -> None:
        self.fs = fsspec.filesystem(protocol, **options)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def bytes_of(self, index: int) -> bytes:
        with self.fs.open(self.names[index], "rb") as file:
            return bytes(file.read())

    def __getitem__(self, index: int) -> int:
        return decode("", self.bytes_of(index))


def decode(name: str, data: bytes) -> int:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.width * image.height


class Scene:
    """A worker on this machine that has all images, and the ways to read them."""

    def __init__(self, directory: Path, worker: WorkerProcess, options: Mapping[str, Any]) -> None:
        self.directory = directory
        self.worker = worker
        self.names = sorted(path.name for path in directory.iterdir())
        over_tcp = {**options, "local_reads": False}
        self.folders = {
            "local": Folder("file", {}, [f"{directory}/{name}" for name in self.names]),
            "tcp": Folder("kara", over_tcp, [f"fixed/{name}" for name in self.names]),
            "tcp, revalidated": Folder("kara", over_tcp, [f"fresh/{name}" for name in self.names]),
            "same host": Folder("kara", options, [f"fixed/{name}" for name in self.names]),
        }
        self.maps = {
            "batches over tcp": ObjectMap("kara://fixed", **over_tcp),
            "batches, same host": ObjectMap("kara://fixed", **options),
        }

    def reads(self) -> dict[str, Read]:
        def plain(indices: list[int]) -> None:
            for index in indices:
                with open(f"{self.directory}/{self.names[index]}", "rb") as file:
                    file.read()

        def opened(folder: Folder) -> Read:
            return lambda indices: [folder.bytes_of(index) for index in indices]

        found: dict[str, Read] = {"open()": plain}
        found |= {name: opened(folder) for name, folder in self.folders.items()}
        return found | {name: each.read_batch for name, each in self.maps.items()}

    def variant(self, read: Read) -> Callable[[], dict[str, float]]:
        """An epoch in the order of one permutation, in microseconds an image."""
        order = random.Random(1).sample(range(len(self.names)), len(self.names))

        def run() -> dict[str, float]:
            worker, cpu, began = process_cpu_s(self.worker.pid), process_time(), perf_counter()
            for first in range(0, len(order), BATCH):
                read(order[first : first + BATCH])
            scale = 1e6 / len(order)
            return {
                "wall us": (perf_counter() - began) * scale,
                "cpu us": (process_time() - cpu) * scale,
                "worker us": (process_cpu_s(self.worker.pid) - worker) * scale,
            }

        return run

    def loader(self, dataset: Dataset[int]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            began = perf_counter()
            pixels = sum(int(batch.sum()) for batch in DataLoader(dataset, BATCH, num_workers=LOADERS))
            assert pixels == len(self.names) * SIDE * SIDE
            return {"images/s": len(self.names) / (perf_counter() - began)}

        return run


def make_images(directory: Path, count: int) -> None:
    directory.mkdir()
    source = random.Random(0)
    gradient = Image.linear_gradient("L").resize((SIDE, SIDE))
    for number in range(count):
        noise = Image.frombytes("RGB", (SIDE, SIDE), source.randbytes(3 * SIDE * SIDE))
        Image.blend(noise, gradient.convert("RGB"), 0.5).save(directory / f"{number:05}.jpg", quality=88)


@contextmanager
def scene(home: Path, count: int) -> Iterator[Scene]:
    images = home / "images"
    make_images(images, count)
    mounts = {
        "fixed": {"url": f"file://{images}", "freshness": "immutable"},
        "fresh": {"url": f"file://{images}"},
    }
    with ExitStack() as stack:
        etcd = stack.enter_context(EtcdServer())
        cluster = LocalCluster(1, mounts=mounts, etcd=etcd, directory=home / "cluster")
        stack.enter_context(cluster)
        options = cluster.client_options
        with CacheClient(ClientConfig.load(env={}, **options)) as client:
            for mount in mounts:
                fsspec.filesystem("kara", **options).cat(f"/{mount}", recursive=True)
            wait_until_kept(client, cluster.workers[0], len(mounts) * count)
        made = Scene(images, cluster.workers[0], options)
        yield made
        for folder in made.folders.values():
            getattr(folder.fs, "close", lambda: None)()
        for each in made.maps.values():
            each.close()


def wait_until_kept(client: CacheClient, worker: WorkerProcess, pages: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while worker.metrics()["kara_worker_page_store_pages"] < pages:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{pages} pages are not on SSD after {WAIT_S} s: {client}")
        time.sleep(0.05)


def fetched(worker: WorkerProcess) -> float:
    """Bytes from its stores so far."""
    name = "kara_worker_store_read_bytes_total"
    return sum(value for key, value in worker.metrics().items() if key.startswith(name))


def table(rounds: Rounds, names: list[str], metric: str, base: str) -> list[str]:
    lines = [f"| {metric} | median | to {base} | spread |", "|---|---|---|---|"]
    for name in names:
        ratios = rounds.ratios(name, base, metric)
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else ""
        ratio = f"{statistics.median(ratios):.2f}x" if ratios else ""
        lines.append(f"| {name} | {rounds.median(name, metric):,.1f} | {ratio} | {spread} |")
    return lines


def report(found: Scene, rounds: int) -> tuple[list[str], dict[str, Any]]:
    meter = Meter(lambda: [found.worker.pid])
    reads = found.reads()
    for read in reads.values():
        read(list(range(len(found.names))))
    cold = fetched(found.worker)
    single = interleave({name: found.variant(read) for name, read in reads.items()}, rounds, meter)
    lines = [
        f"{len(found.names)} images, {rounds} rounds, others used {single.foreign:.0%} of the machine",
        "",
    ]
    for metric in ("wall us", "cpu us", "worker us"):
        lines += [*table(single, [*reads], metric, "open()"), ""]
    sets: dict[str, Dataset[int]] = {**found.folders}
    sets["batches over tcp"] = ObjectMap(
        "kara://fixed", decode=decode, **found.folders["tcp"].fs.storage_options
    )
    epochs = interleave({name: found.loader(each) for name, each in sets.items()}, max(2, rounds // 2), meter)
    lines += table(epochs, [*sets], "images/s", "local")
    return lines, {
        "reads": [each.values for each in single.kept],
        "epochs": [each.values for each in epochs.kept],
        "cold_bytes": cold,
        "warm_bytes": fetched(found.worker) - cold,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_folder", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    parser.add_argument("--out", type=Path, help="where the figures of every round go, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kara-images-") as home:
        with scene(Path(home), 96 if arguments.quick else IMAGES) as found:
            lines, figures = report(found, 3 if arguments.quick else 9)
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
