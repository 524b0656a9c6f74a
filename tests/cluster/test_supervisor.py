"""`kara-worker --workers N`: processes of their own under one that starts them again and ends with them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig

TIMEOUT_S = 60.0


class Supervised:
    """`kara-worker --workers 2` on `directory`, and what it prints."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.pages = directory / "pages"
        (directory / "files").mkdir(exist_ok=True)
        (directory / "files" / "file").write_bytes(b"hello")
        self._sockets = tempfile.TemporaryDirectory(prefix="kara-s-")
        command = [sys.executable, "-m", "kara_worker", "--workers", "2", "--page-dir", str(self.pages)]
        command += ["--port", "0", "--admin-port", "0", "--capacity", "64MiB"]
        command += ["--mount", f"data=file://{directory}/files", "--socket-dir", self._sockets.name]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KARA_")}
        self.process = subprocess.Popen(
            [*command, *arguments], env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )

    def ready(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], TIMEOUT_S)
        assert readable, "no worker is ready"
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return dict(json.loads(line))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(TIMEOUT_S)
            self.process.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self._sockets.cleanup()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    found = Supervised(tmp_path)
    yield found
    found.close()


def read(*workers: dict[str, Any]) -> bytes:
    hosts = ",".join(f"127.0.0.1:{worker['port']}" for worker in workers)
    client = CacheClient(ClientConfig.load(env={}, worker_hosts=hosts))
    try:
        data = bytearray(5)
        assert client.read_into(client.info("/data/file"), 0, data) == 5
        return bytes(data)
    finally:
        client.close()


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_workers_in_one_command(supervised: Supervised, number: int) -> None:
    one, two = ready = sorted((supervised.ready() for _ in range(2)), key=lambda line: str(line["id"]))
    for key in ("id", "pid", "port", "admin_port", "socket_path"):
        assert one[key] != two[key]
    identities = [(supervised.pages / f"worker-{n}" / "IDENTITY").read_text().strip() for n in range(2)]
    assert sorted(identities) == [one["id"], two["id"]]
    assert read(one) == read(two) == read(*ready) == b"hello"
    assert supervised.end(number) == 0
    assert not any(alive(line["pid"]) for line in ready)


def test_a_worker_that_was_killed_comes_back_as_itself(supervised: Supervised) -> None:
    one, two = supervised.ready(), supervised.ready()
    os.kill(one["pid"], signal.SIGKILL)
    again = supervised.ready()
    assert again["id"] == one["id"]
    assert again["pid"] != one["pid"]
    assert alive(two["pid"])
    assert read(again) == read(two) == b"hello"
    assert supervised.end(signal.SIGTERM) == 0


def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path)
    try:
        supervised.ready()  # the other one is somewhere on its way
        assert supervised.end(signal.SIGTERM) == 0
    finally:
        supervised.close()


def test_a_refused_directory_ends_all(tmp_path: Path) -> None:
    """Starting again would help nothing; the worker that could run does not run alone."""
    photos = tmp_path / "pages" / "worker-1"
    photos.mkdir(parents=True)
    (photos / "wedding.jpg").write_bytes(b"irreplaceable")
    supervised = Supervised(tmp_path)
    try:
        _, words = supervised.process.communicate(timeout=TIMEOUT_S)
    finally:
        supervised.close()
    assert supervised.process.returncode == 6
    assert b"wedding.jpg, so it is not ours" in words
    assert b"Traceback" not in words
    assert (photos / "wedding.jpg").read_bytes() == b"irreplaceable"


def test_detached(tmp_path: Path) -> None:
    """Who started them has read the ready lines and left: a later line goes nowhere and breaks nothing."""
    log = tmp_path / "log"
    supervised = Supervised(tmp_path, "--detach", "--log-file", str(log))
    ready = [supervised.ready(), supervised.ready()]
    assert supervised.process.wait(TIMEOUT_S) == 0
    parent = int(Path(f"/proc/{ready[0]['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    descriptor = os.pidfd_open(parent)
    assert supervised.process.stdout is not None
    supervised.process.stdout.close()
    try:
        os.kill(ready[0]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + TIMEOUT_S
        while log.read_text().count(" serves ") < 3:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert "starting it again" in log.read_text()
    finally:
        os.kill(parent, signal.SIGTERM)
        ended, _, _ = select.select([descriptor], [], [], TIMEOUT_S)
        os.close(descriptor)
        supervised.close()
    assert ended
    assert "Broken pipe" not in log.read_text()


def test_detached_says_why_it_could_not_start(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "wedding.jpg").write_bytes(b"irreplaceable")
    supervised = Supervised(tmp_path, "--detach", "--log-file", str(tmp_path / "log"), "--workers", "1")
    try:
        out, words = supervised.process.communicate(timeout=TIMEOUT_S)
    finally:
        supervised.close()
    assert (supervised.process.returncode, out) == (6, b"")
    assert b"wedding.jpg, so it is not ours" in words
