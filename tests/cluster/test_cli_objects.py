"""Every action of `kara obj`: on a terminal, piped, interrupted, and when it cannot be done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from services import require_module

from kara_cache.cli.exit_code import ExitCode
from kara_cache.cli.main import main
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.rude_http_server import RudeHttpServer, Rudeness

require_module("pyte")
from terminal import Terminal  # noqa: E402 - needs pyte

FILES = {"model.bin": os.urandom((9 << 20) + 5), "deep/er/notes.txt": b"notes\n", "名": b""}
ACTIONS = ("save", "load", "ls", "verify")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    words: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Kara = Callable[..., Said]


@pytest.fixture
def kara(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path
) -> Kara:
    for name in [name for name in os.environ if name.startswith("KARA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Said:
        try:
            code = int(main([str(argument) for argument in arguments]))
        except SystemExit as exc:  # of argparse
            code = int(exc.code or 0)
        return Said(code, *capfd.readouterr())

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, data in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "source"


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


URL = "file://db"  # relative, as documented


def test_save_and_load(kara: Kara, tmp_path: Path) -> None:
    said = kara("obj", URL, "save", "models", "bert", "source")
    assert (said.code, said.out, said.words) == (0, "0\n", "")
    assert kara("object", URL, "save", "models", "bert", "source", "-v", "epoch-1").out == "epoch-1\n"
    assert kara("obj", URL, "load", "models", "bert", "target").out == "epoch-1\n"
    assert content(tmp_path / "target") == FILES
    (tmp_path / "target" / "mine").write_bytes(b"mine")
    (document,) = kara("obj", URL, "load", "models", "bert", "target", "-v", 0, "--json").documents
    assert document == {"version": "0", "files": 3, "bytes": sum(map(len, FILES.values()))}
    assert (tmp_path / "target" / "mine").exists()
    assert kara("obj", URL, "load", "models", "bert", "target", "--delete").code == 0
    assert content(tmp_path / "target") == FILES


def test_ls(kara: Kara) -> None:
    kara("obj", URL, "save", "models", "bert/large", "source")
    kara("obj", URL, "save", "models", "bert/large", "source", "-v", "b")
    assert kara("obj", URL, "ls").lines == ["models/bert/large"]
    assert kara("obj", URL, "ls", "models", "--json").documents == [{"name": "models/bert/large"}]
    assert kara("obj", URL, "ls", "models", "bert/large").lines == ["0", "b (latest)"]
    assert kara("obj", URL, "ls", "models", "bert/large", "-v", "0").lines == sorted(FILES)
    lines = kara("obj", URL, "ls", "models", "bert/large", "-v", "latest", "-l").lines
    assert [line.split()[1] for line in lines] == [str(len(FILES[name])) for name in sorted(FILES)]
    (first, *_) = kara("obj", URL, "ls", "models", "bert/large", "-v", "0", "--json").documents
    assert (first["path"], first["size"], first["mode"]) == ("deep/er/notes.txt", 6, 0o644)


def test_verify(kara: Kara, tmp_path: Path) -> None:
    kara("obj", URL, "save", "models", "bert", "source")
    assert kara("obj", URL, "verify", "models", "bert").lines == [
        "version 0: 3 files in 3 blobs, 9.0 MiB, all right"
    ]
    (blob,) = [path for path in (tmp_path / "db/obj/models/bert/data").iterdir() if path.stat().st_size == 6]
    blob.write_bytes(b"wrong\n")
    said = kara("obj", URL, "verify", "models", "bert")
    assert (said.code, len(said.lines)) == (ExitCode.FAILED, 1)
    assert blob.name in said.out
    assert "deep/er/notes.txt" in said.out
    assert "1 of 3 blobs are damaged" in said.words
    (document,) = kara("obj", URL, "verify", "models", "bert", "--json").documents
    assert document["problems"][0]["files"] == ["deep/er/notes.txt"]
    said = kara("obj", URL, "load", "models", "bert", "target")
    assert said.code == ExitCode.FAILED
    assert blob.name in said.words
    assert kara("obj", URL, "save", "models", "bert", "source", "--verify").out == "1\n"
    assert kara("obj", URL, "verify", "models", "bert", "-v", "0").code == ExitCode.OK


def test_verify_of_a_local_directory(kara: Kara, tmp_path: Path) -> None:
    kara("obj", URL, "save", "models", "bert", "source")
    said = kara("obj", URL, "verify", "models", "bert", "source")
    assert said.lines == ["version 0: 3 files in 3 blobs, 9.0 MiB, all right"]
    (tmp_path / "source" / "deep" / "er" / "notes.txt").write_bytes(b"nodes\n")
    (tmp_path / "source" / "model.bin").unlink()
    said = kara("obj", URL, "verify", "models", "bert", "source", "-v", "0")
    assert said.code == ExitCode.FAILED
    assert [line.partition("  ")[2] for line in said.lines] == [
        "other bytes: deep/er/notes.txt",
        "missing, not readable, or of another size: model.bin",
    ]
    assert "2 of 3 files are damaged" in said.words


def test_through_the_cache(kara: Kara, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    with LocalCluster(1, mounts={"data": f"file://{tmp_path}/db"}, directory=tmp_path / "cluster") as cluster:
        where = ["--worker-hosts", cluster.worker_hosts]
        url = f"kara::file://{tmp_path}/db"
        assert kara("obj", url, "save", "models", "bert", "source", *where).out == "0\n"
        assert kara("obj", url, "load", "models", "bert", "target", *where).out == "0\n"
        assert content(tmp_path / "target") == FILES
        assert kara("obj", url, "ls", *where).lines == ["models/bert"]
        assert cluster.total("kara_worker_fills_total") > 0


FAILURES: dict[str, tuple[str, ExitCode, str]] = {
    "no action": (URL, ExitCode.USAGE, "required: ACTION"),
    "no path": (f"{URL} save models bert", ExitCode.USAGE, "required: PATH"),
    "version without a key": (f"{URL} ls models -v 1", ExitCode.USAGE, "want a namespace and a key"),
    "no such directory": (
        f"{URL} save models bert ./nothing",
        ExitCode.NOT_FOUND,
        "No such file or directory",
    ),
    "a file": (f"{URL} save models bert source/model.bin", ExitCode.NOT_FOUND, "Not a directory"),
    "nothing saved": (f"{URL} load models bert target", ExitCode.NOT_FOUND, "Dataset not exists"),
    "latest of nothing": (
        f"{URL} save models bert source -v latest",
        ExitCode.NOT_FOUND,
        "Dataset not exists",
    ),
    "read-only": ("http://127.0.0.1:9/x save models bert source", ExitCode.DENIED, "read-only"),
    "nobody there": (
        "http://127.0.0.1:9/x load a b target --store-option http.retries=0",
        ExitCode.UNAVAILABLE,
        "refused",
    ),
    "key that leads out": (f"{URL} save models ../x source", ExitCode.FAILED, "not allowed"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures(kara: Kara, case: str, tmp_path: Path) -> None:
    arguments, code, words = FAILURES[case]
    said = kara("obj", *arguments.split())
    assert (said.code, said.out) == (code, ""), said.words
    assert words in said.words
    assert "Traceback" not in said.words
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("action", ACTIONS)
def test_help_ends_in_examples(kara: Kara, action: str) -> None:
    examples = kara("obj", "URL", action, "--help").out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith("  kara obj ") and f" {action}" in line for line in examples)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kara_cache.cli.main", "obj", *arguments]


def test_a_terminal_gets_bars(source: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/db"
    for arguments, labels in (
        (("save", "models", "bert", str(source)), ("Hashing: 100%", "Uploading: 100%")),
        (("load", "models", "bert", str(tmp_path / "target")), ("Downloading: 100%",)),
        (("verify", "models", "bert"), ("Verifying: 100%",)),
    ):
        with Terminal(command(url, *arguments), columns=120) as terminal:
            assert terminal.wait_for_end() == 0
            shown = "\n".join(terminal.display)
            assert all(label in shown for label in labels), shown
    assert content(tmp_path / "target") == FILES


def test_ctrl_c_and_going_on(kara: Kara, source: Path, tmp_path: Path) -> None:
    kara("obj", URL, "save", "models", "bert", source)
    with RudeHttpServer() as server:
        for path in (tmp_path / "db").rglob("*"):
            if path.is_file():
                server.put(f"db/{path.relative_to(tmp_path / 'db').as_posix()}", path.read_bytes())
                if path.stat().st_size > 1 << 20:
                    large = f"db/{path.relative_to(tmp_path / 'db').as_posix()}"
        server.misbehave(Rudeness(), path=large, times=1)  # the first part comes, the second one stalls
        server.misbehave(Rudeness(stall_after=10), path=large)
        arguments = command(f"{server.url}/db", "load", "models", "bert", str(tmp_path / "target"))
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while not any(request.sent_bytes == 10 for request in server.requests):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, words = process.communicate(timeout=100)
        assert (process.returncode, out, words) == (ExitCode.INTERRUPTED, b"", b"")
        assert "model.bin" not in content(tmp_path / "target")
        server.behave()
        assert kara("obj", f"{server.url}/db", "load", "models", "bert", "target").out == "0\n"
    assert content(tmp_path / "target") == FILES
