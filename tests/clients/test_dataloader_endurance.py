"""A client made in the parent and used by the processes of a DataLoader, epoch after epoch.

The slow tests have the counts that the product promises: 200 epochs by fork, 20 by spawn, 20 by
forkserver, and 1 000 bare forks while other threads of the parent read. A few of each run always.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import threading
import time
from typing import Any

import fsspec
import pytest
from main_job import content
from mounted import Mounted
from services import require_module

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
torch = require_module("torch")

FILES = 12
PROMISED = pytest.mark.slow
EPOCHS = [
    ("fork", 10),
    ("spawn", 1),
    ("forkserver", 1),
    pytest.param("fork", 200, marks=PROMISED),
    pytest.param("spawn", 20, marks=PROMISED),
    pytest.param("forkserver", 20, marks=PROMISED),
]
FORKS = [50, pytest.param(1000, marks=PROMISED)]


def name_and_data(number: int) -> tuple[str, bytes]:
    return f"{number:03}.bin", content(f"sample {number}", 1000 + 37_777 * number)


class Samples(torch.utils.data.Dataset):  # type: ignore[misc, name-defined]
    """Reads whole files, parts of an open file, and batches, in whichever process it finds itself."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.fs, path = fsspec.core.url_to_fs(url, **options)
        self.paths = sorted(self.fs.find(path))
        self.open_file = self.fs.open(self.paths[-1])
        self.open_file.read(100)  # read-ahead is at work when the children come

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> str:
        digest = hashlib.sha256(self.fs.cat_file(self.paths[index]))
        self.open_file.seek(index * 1000)
        digest.update(self.open_file.read(1000))
        for part in self.fs.cat_ranges([self.paths[index]] * 3, [0, 10, 500], [10, 20, 600]):
            digest.update(part)
        return digest.hexdigest()


@pytest.fixture
def samples(kara: Mounted, place: tuple[str, Any]) -> Any:
    url, directory = place
    for number in range(FILES):
        name, data = name_and_data(number)
        (directory / name).write_bytes(data)
    made = Samples(url, kara.options)
    yield made
    made.open_file.close()


def wanted() -> list[str]:
    _, last = name_and_data(FILES - 1)
    digests = []
    for number in range(FILES):
        _, data = name_and_data(number)
        parts = (data, last[number * 1000 : number * 1000 + 1000], data[:10], data[10:20], data[500:600])
        digests.append(hashlib.sha256(b"".join(parts)).hexdigest())
    return digests


@pytest.mark.parametrize(("method", "epochs"), EPOCHS)
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_every_epoch_has_the_right_bytes(samples: Samples, method: str, epochs: int) -> None:
    loader = torch.utils.data.DataLoader(
        samples, batch_size=3, num_workers=2, multiprocessing_context=method, timeout=60
    )
    want = wanted()
    for epoch in range(epochs):
        got = [digest for batch in loader for digest in batch]
        assert got == want, f"epoch {epoch}"


@pytest.mark.parametrize("forks", FORKS)
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_bare_forks_while_other_threads_read(samples: Samples, forks: int) -> None:
    want, stop, errors = wanted(), threading.Event(), []

    def read() -> None:
        choose = random.Random(1)
        while not stop.is_set():
            index = choose.randrange(FILES)
            data = samples.fs.cat_file(samples.paths[index])
            if data != name_and_data(index)[1]:
                errors.append(index)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(forks):
            assert in_a_child(samples, number % FILES) == want[number % FILES], f"fork {number}"
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert errors == []


def in_a_child(samples: Samples, index: int) -> str:
    """What a forked child reads; "" if it says nothing for a minute."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, samples[index].encode())
        finally:
            os._exit(0)
    os.close(writer)
    text, deadline = b"", time.monotonic() + 60
    while select.select([reader], [], [], max(0, deadline - time.monotonic()))[0]:
        piece = os.read(reader, 100)
        if not piece:
            break
        text += piece
    os.close(reader)
    if not text:
        os.kill(pid, 9)
    os.waitpid(pid, 0)
    return text.decode()
