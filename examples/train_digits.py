"""Trains a small network on scikit-learn's digits, read through the cache, and goes on where it was killed.

Needs `pip install "kara-cache[oss]" scikit-learn torch`. Publish the data once, as rows or as images:

    python examples/train_digits.py publish --url kara::oss://endpoint/bucket/digits --data rows

Train with two ranks, from either; where the cluster is, the environment says (KARA_WORKER_HOSTS or
KARA_ETCD_HOSTS). Kill it at any time and run the same line again: the losses go on as if nothing had been.

    torchrun --nproc-per-node 2 examples/train_digits.py train --url kara::oss://endpoint/bucket/digits \
        --data rows --checkpoint digits.pt
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import fsspec
import torch
import torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel

import kara_cache
from kara_cache.torch import ObjectMap, ResumableLoader, RowBatches, RowStream

SIDE = 8  # pixels of an image, each way
BRIGHTEST = 16


def publish(url: str, data: str) -> None:
    """Rows as the data set "digits/train"; images in a directory for each label."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    if data == "rows":
        publish_rows(url, digits)
    else:
        publish_images(url, digits)


def publish_rows(url: str, digits: Any) -> None:
    with kara_cache.KaraStorage(url).open("digits", "train", "w", version="1") as rows:
        for pixels, label in zip(digits.data, digits.target, strict=True):
            rows.write({"pixels": [int(pixel) for pixel in pixels], "label": int(label)})


def publish_images(url: str, digits: Any) -> None:
    fs, path = fsspec.core.url_to_fs(f"{url}/images")
    for number, (pixels, label) in enumerate(zip(digits.data, digits.target, strict=True)):
        header = f"P5 {SIDE} {SIDE} {BRIGHTEST}\n".encode()  # the format is called PGM
        fs.pipe_file(f"{path}/{label}/{number:04}.pgm", header + bytes(int(pixel) for pixel in pixels))


def sample_of_row(row: dict[str, Any]) -> tuple[torch.Tensor, int]:
    return torch.tensor(row["pixels"], dtype=torch.float32) / BRIGHTEST, row["label"]


def sample_of_image(name: str, data: bytes) -> tuple[torch.Tensor, int]:
    pixels = torch.frombuffer(bytearray(data[-SIDE * SIDE :]), dtype=torch.uint8)
    return pixels.to(torch.float32) / BRIGHTEST, int(name.split("/")[0])


def open_loader(url: str, data: str, *, batch_size: int, workers: int) -> ResumableLoader:
    """This rank's part of either form; "pad", because ranks must make the same number of steps."""
    if data == "rows":
        rows = kara_cache.KaraStorage(url).open("digits", "train")
        stream = RowStream(rows, batch_size=batch_size, seed=1, remainder="pad", decode=sample_of_row)
        return ResumableLoader(stream, num_workers=workers)
    images = ObjectMap(f"{url}/images", suffixes=(".pgm",), decode=sample_of_image)
    batches = RowBatches(len(images), batch_size=batch_size, seed=1, remainder="pad")
    return ResumableLoader(images, batches, num_workers=workers)


def save(path: str, checkpoint: dict[str, Any]) -> None:
    """The one before or this one is there, whenever the process dies."""
    torch.save(checkpoint, f"{path}.new")
    os.replace(f"{path}.new", path)


def train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(SIDE * SIDE, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = open_loader(
        arguments.url, arguments.data, batch_size=arguments.batch_size, workers=arguments.workers
    )
    step = 0
    if os.path.exists(arguments.checkpoint):
        checkpoint = torch.load(arguments.checkpoint, weights_only=True)
        network.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loader.load_state_dict(checkpoint["loader"])
        step = checkpoint["step"]
    for epoch in range(loader.epoch, arguments.epochs):
        loader.set_epoch(epoch)
        for pixels, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pixels), labels)
            loss.backward()
            optimizer.step()
            step += 1
            mean = loss.detach().clone()
            distributed.all_reduce(mean)
            if distributed.get_rank() == 0:
                print(
                    f"step {step} epoch {epoch} loss {mean.item() / distributed.get_world_size():.17g}",
                    flush=True,
                )
                if step % arguments.every == 0:
                    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
                    save(arguments.checkpoint, {**state, "loader": loader.state_dict(), "step": step})
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["publish", "train"])
    parser.add_argument("--url", required=True, help="where the data is")
    parser.add_argument("--data", choices=["rows", "images"], default="rows")
    parser.add_argument("--checkpoint", default="digits.pt")
    parser.add_argument("--every", type=int, default=5, help="steps from one checkpoint to the next")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="of each rank")
    parser.add_argument("--workers", type=int, default=1, help="loader workers of each rank")
    arguments = parser.parse_args()
    if arguments.verb == "publish":
        publish(arguments.url, arguments.data)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
