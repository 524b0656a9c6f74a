"""Directories of objects and the published kara-storage 2.1.5: each reads what the other wrote."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from published import python_with

from kara_cache.storage import objects
from kara_cache.storage.location import Location, open_location
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(900),  # the first run installs the package
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
FILES = {
    "a.txt": b"a",
    "deep/er/b.bin": bytes(range(256)) * 5000,
    "deep/twin": b"a",
    "名": b"name",
    "zero": b"",
}
PROGRAM = """
import json, kara_storage, sys
url, options, action, path, version = json.loads(sys.argv[1])
storage = kara_storage.KaraStorage(url, **options)
run = storage.save_directory if action == "save" else storage.load_directory
print(run("ns", "a/key", path, version, progress_bar=False))
"""


@pytest.fixture(scope="session")
def interpreter() -> Path:
    return python_with("kara-storage==2.1.5")


def published(python: Path, url: str, action: str, path: Path, version: str | None, **options: Any) -> str:
    arguments = json.dumps([url, options, action, str(path), version])
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", PROGRAM, arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a thread of the published package died without ending it"
    return done.stdout.strip()


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


def save(location: Location, path: Path, version: object = None) -> str:
    return objects.save_directory(location, "ns", "a/key", path, version, progress_bar=False)


def load(location: Location, path: Path, version: object = "latest") -> str:
    return objects.load_directory(location, "ns", "a/key", path, version, progress_bar=False)


def test_the_published_package_reads_ours(interpreter: Path, source: Path, tmp_path: Path) -> None:
    """What we add to version files (modes, times, empty directories) does not disturb it."""
    (source / "a.txt").chmod(0o755)
    (source / "nothing").mkdir()
    url = f"file://{tmp_path}/db"
    with closing(open_location(url)) as location:
        save(location, source)
        (source / "a.txt").write_bytes(b"second")
        save(location, source, "named")
    assert b"empty_directories" in (tmp_path / "db/obj/ns/a/key/vers/named.json").read_bytes()
    assert published(interpreter, url, "load", tmp_path / "latest", "latest") == "named"
    assert content(tmp_path / "latest") == {**FILES, "a.txt": b"second"}
    assert published(interpreter, url, "load", tmp_path / "first", "0") == "0"
    assert content(tmp_path / "first") == FILES


def test_we_read_the_published_packages(interpreter: Path, source: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/db"
    assert published(interpreter, url, "save", source, None) == "0"
    with closing(open_location(url)) as location:
        assert load(location, tmp_path / "target") == "0"
        assert content(tmp_path / "target") == FILES
        assert objects.verify_directory(location, "ns", "a/key", progress_bar=False).problems == ()


def test_taking_turns(interpreter: Path, source: Path, tmp_path: Path) -> None:
    """Blobs of the one are used by the other, and numbers go on."""
    url = f"file://{tmp_path}/db"
    with closing(open_location(url)) as location:
        assert published(interpreter, url, "save", source, None) == "0"
        blobs = {path: path.stat().st_ino for path in (tmp_path / "db/obj/ns/a/key/data").iterdir()}
        (source / "new").write_bytes(b"new")
        assert save(location, source) == "1"
        assert (
            blobs.items()
            <= {path: path.stat().st_ino for path in (tmp_path / "db/obj/ns/a/key/data").iterdir()}.items()
        )
        (source / "newer").write_bytes(b"newer")
        assert published(interpreter, url, "save", source, None) == "2"
        assert published(interpreter, url, "save", source, "1") == "1"  # over ours, without our extension
        meta = json.loads((tmp_path / "db/obj/ns/a/key/meta.json").read_bytes())
        assert meta == {"latest": "1", "versions": ["0", "1", "2"], "api": 2}
        assert load(location, tmp_path / "target") == "1"
        assert content(tmp_path / "target") == {**FILES, "new": b"new", "newer": b"newer"}
        assert published(interpreter, url, "load", tmp_path / "target", "0") == "0"
        assert content(tmp_path / "target") == FILES


def test_over_oss(source: Path, tmp_path: Path) -> None:
    interpreter = python_with("kara-storage==2.1.5", "oss2==2.19.1")
    with OssServer(buckets=["bucket"]) as server:
        url = f"oss://{server.host}/bucket/pre/fix"
        keys = server.credentials
        options = {"app_key": keys.key_id, "app_secret": keys.key_secret, "use_ssl": False}
        with closing(open_location(url, **options)) as location:
            assert save(location, source) == "0"
            assert published(interpreter, url, "load", tmp_path / "theirs", "latest", **options) == "0"
            assert content(tmp_path / "theirs") == FILES
            assert published(interpreter, url, "save", source, "theirs", **options) == "theirs"
            assert load(location, tmp_path / "ours") == "theirs"
            assert content(tmp_path / "ours") == FILES


def test_over_http(interpreter: Path, source: Path, tmp_path: Path) -> None:
    with closing(open_location(f"file://{tmp_path}/db")) as location:
        save(location, source)
    with RudeHttpServer() as server:
        for path in (tmp_path / "db").rglob("*"):
            if path.is_file():
                server.put(f"db/{path.relative_to(tmp_path / 'db').as_posix()}", path.read_bytes())
        assert published(interpreter, f"{server.url}/db", "load", tmp_path / "theirs", "latest") == "0"
        assert content(tmp_path / "theirs") == FILES


def test_what_the_published_package_leaves_when_it_fails(
    interpreter: Path, source: Path, tmp_path: Path
) -> None:
    """It publishes first and reads then: a save of a file makes a version that nobody can load."""
    url = f"file://{tmp_path}/db"
    with closing(open_location(url)) as location:
        save(location, source)
        with pytest.raises(AssertionError, match="NotADirectoryError"):
            published(interpreter, url, "save", source / "a.txt", None)
        with pytest.raises(Exception, match="version 1: its file is missing"):
            load(location, tmp_path / "target")
        assert load(location, tmp_path / "target", "0") == "0"
        assert save(location, source, "latest") == "1"
        assert published(interpreter, url, "load", tmp_path / "theirs", "latest") == "1"
        assert content(tmp_path / "theirs") == FILES
