"""Bad input of people: what they typed, what they are told, and that nothing was lost.

The messages are the ones of docs/operations.md, word for word.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from main_job import cluster_on, content, store_of

from kara_cache.token import Claims, mint
from kara_worker.testing.cluster import LocalCluster

DOCUMENT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
SECRET = "0123456789abcdef-shared"
CONFIG = 6


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KARA_")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **environment},
        check=False,
    )


def documented(message: str) -> bool:
    """Whether the table of the document has this message, with <...> for what differs between machines."""
    cells = [cell.strip("| `") for line in DOCUMENT.splitlines() for cell in line.split(" | ")]
    patterns = [".+".join(map(re.escape, re.split(r"<[a-z ]+>", cell))) for cell in cells if len(cell) > 20]
    return any(re.fullmatch(pattern, message.strip(), re.DOTALL) for pattern in patterns)


WORKER = {
    "unknown flag": (["--capcity", "1GiB"], 2, "unrecognized arguments: --capcity"),
    "unknown key in a file": (["--config", "{dir}/typo.toml"], CONFIG, "did you mean"),
    "bad size": (["--capacity", "10 gigs"], CONFIG, "10 gigs"),
    "foreign directory": (["--page-dir", "{dir}/photos"], CONFIG, "not ours"),
    "capacity over the disk": (["--capacity", "900PiB"], CONFIG, "file system has"),
    "0.0.0.0 without authentication": (["--host", "0.0.0.0"], CONFIG, "without authentication"),
    "admin port for everybody": (["--admin-host", "0.0.0.0"], CONFIG, "admin_anonymous"),
    "secret on the command line": (["--secret", SECRET], CONFIG, "env:"),
    "short secret": (["--secret", "env:SHORT"], CONFIG, "at least 16"),
    "missing secret": (["--secret", "env:NOT_THERE"], CONFIG, "NOT_THERE"),
    "mount without url": (["--mount", "data"], CONFIG, "NAME=URL"),
    "mount of an unknown store": (["--mount", "d=gopher://x/y"], CONFIG, "gopher"),
    "password in a url": (["--mount", "d=https://user:pw@host/x"], CONFIG, "password"),
    "page size": (["--page-bytes", "1000000"], CONFIG, "power of two"),
    "missing credentials": (
        ["--mount", "d=s3://bucket", "--mount-option", "d.secret_access_key=env:NOT_THERE"],
        CONFIG,
        "NOT_THERE",
    ),
    "secret of a store on the command line": (
        ["--mount", "d=s3://bucket", "--mount-option", "d.secret_access_key=abc"],
        CONFIG,
        "env:",
    ),
    "unknown option of a store": (
        ["--mount", "d=file:///tmp", "--mount-option", "d.speed=1"],
        CONFIG,
        "speed",
    ),
    "unknown policy": (["--eviction", "magic"], CONFIG, "magic"),
}


@pytest.mark.parametrize("case", WORKER)
def test_worker(tmp_path: Path, case: str) -> None:
    arguments, code, words = WORKER[case]
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_bytes(b"irreplaceable")
    (tmp_path / "typo.toml").write_text('[worker]\ncapacity_byte = "1GiB"\n')
    given = [argument.format(dir=tmp_path) for argument in arguments]
    if "--page-dir" not in given:
        given += ["--page-dir", str(tmp_path / "pages")]
    done = run("kara_worker", *given, SHORT="short")
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert documented(done.stderr.splitlines()[-1].replace(str(tmp_path), "<dir>")), done.stderr
    assert [path.name for path in photos.iterdir()] == ["wedding.jpg"]
    assert (photos / "wedding.jpg").read_bytes() == b"irreplaceable"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:  # type: ignore[misc]
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "secret").write_text(SECRET)
    with store_of(file=content("file", 100)) as store:
        with cluster_on(store, directory, workers=1, secret=f"file:{directory}/secret") as cluster:
            yield cluster


def token(seconds: int, secret: str) -> str:
    return mint(secret.encode(), Claims(frozenset({"read"}), "/", int(time.time()) + seconds, "test"))


VALID, EXPIRED, FOREIGN = (60, SECRET), (-3600, SECRET), (60, "another-secret-of-16")
CLIENT = {
    "unknown mount": (["stat", "/nowhere/x"], VALID, 3, "no mount 'nowhere'"),
    "missing file": (["stat", "/web/nothing"], VALID, 3, "nothing"),
    "dots in a path": (["stat", "/web/../etc/passwd"], VALID, 1, "'..'"),
    "url outside every mount": (["stat", "http://example.com/x"], VALID, CONFIG, "no mount covers"),
    "missing token": (["stat", "/web/file"], None, 4, "token is required"),
    "wrong token": (["stat", "/web/file"], FOREIGN, 4, "signature"),
    "expired token": (["stat", "/web/file"], EXPIRED, 4, "expired"),
    "token on the command line": (["stat", "/web/file", "--token", "kara1.x"], None, CONFIG, "ps"),
    "no worker there": (["stat", "/web/file", "--worker-hosts", "127.0.0.1:9"], None, 5, "refused"),
    "both kinds of members": (["ls", "--etcd-hosts", "h", "--worker-hosts", "h:1"], None, CONFIG, "both set"),
}


@pytest.mark.leaves_running("connections of the module's store")
@pytest.mark.parametrize("case", CLIENT)
def test_client(guarded: LocalCluster, case: str) -> None:
    arguments, given, code, words = CLIENT[case]
    if "--worker-hosts" not in arguments:
        arguments = [*arguments, "--worker-hosts", guarded.worker_hosts]
    environment = {"T": token(*given)} if given else {}
    if given:
        arguments = [*arguments, "--token", "env:T"]
    done = run("kara_cache.cli.main", *arguments, **environment)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1].replace(guarded.worker_hosts, "<worker>")
    assert documented(message), done.stderr


def test_a_nul_cannot_even_be_asked_for(guarded: LocalCluster) -> None:
    from main_job import client_of

    with (
        client_of(guarded, secret=SECRET) as client,
        pytest.raises(ValueError, match=r"control character '\\x00'"),
    ):
        client.info("/web/fi\0le")
