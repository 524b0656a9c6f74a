"""Saves and loads that are killed at every kind of moment, and what the next one makes of it."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kara_cache.storage import objects
from kara_cache.storage.location import Location, open_location
from kara_cache.storage.objects.partial_blob import PART_BYTES
from kara_worker.testing.oss_server import OssServer

pytestmark = [
    pytest.mark.fault,
    pytest.mark.timeout(600),  # a process for each trial, on a machine that may be busy
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
CHILD = Path(__file__).with_name("object_child.py")
RANDOM = random.Random(8)
LARGE = RANDOM.randbytes(PART_BYTES + 4321)
OLD = {"large": LARGE[::-1], "same": b"same", "a/changes": b"old", "goes": b"goes", "b/c/d": b"" * 3}
NEW = {"large": LARGE, "twin": LARGE, "same": b"same", "a/changes": b"new", "comes/in": b"comes", "e": b""}


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def run(
    action: str, location: Location, directory: Path, fatal: int, **options: Any
) -> subprocess.CompletedProcess[str]:
    where = [location.url, json.dumps(options)]
    command = [sys.executable, "-W", "ignore", str(CHILD), action, *where, str(directory), str(fatal)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def changes(action: str, location: Location, directory: Path, **options: Any) -> int:
    """How many steps it takes when nobody is killed."""
    done = run(action, location, directory, 0, **options)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


def points(total: int, trials: int, seed: int) -> list[int]:
    """Some moments; more than there are means each of them."""
    return sorted(random.Random(seed).sample(range(1, total + 1), min(trials, total)))


def save_trials(tmp_path: Path, trials: int, seed: int) -> None:
    pristine, old, new = tmp_path / "pristine", write(tmp_path / "old", OLD), write(tmp_path / "new", NEW)
    location = open_location(f"file://{tmp_path}/db")
    objects.save_directory(location, "ns", "key", old, progress_bar=False)
    shutil.copytree(tmp_path / "db", pristine)
    total = changes("save", location, new)
    for fatal in points(total, trials, seed):
        shutil.rmtree(tmp_path / "db")
        shutil.copytree(pristine, tmp_path / "db")
        assert run("save", location, new, fatal).returncode == -signal.SIGKILL
        check_save(location, new, tmp_path, f"killed at {fatal} of {total}")


def check_save(location: Location, new: Path, tmp_path: Path, when: str) -> None:
    versions = objects.list_versions(location, "ns", "key")
    assert versions.names in (("0",), ("0", "1")), when
    for name in versions.names:  # whatever is visible is whole
        assert not objects.verify_directory(location, "ns", "key", name, progress_bar=False).problems, when
    target = tmp_path / "target"
    objects.load_directory(location, "ns", "key", target, progress_bar=False)
    assert content(target) == (NEW if versions.latest == "1" else OLD), when
    shutil.rmtree(target)

    version = objects.save_directory(location, "ns", "key", new, progress_bar=False)
    assert version == str(len(versions.names)), when
    objects.load_directory(location, "ns", "key", target, progress_bar=False)
    assert content(target) == NEW, when
    shutil.rmtree(target)
    key = tmp_path / "db" / "obj" / "ns" / "key"
    left = {path.name for path in key.rglob("*") if path.is_file()}
    known = {
        file.blob.name for v in ("0", version) for file in objects.list_files(location, "ns", "key", v).files
    }
    expected = {"meta.json", ".meta.lock", ".save.lock", *(f"{i}.json" for i in range(int(version) + 1))}
    assert left == known | expected, when


def load_trials(tmp_path: Path, trials: int, seed: int) -> None:
    location = open_location(f"file://{tmp_path}/db")
    for files in (OLD, NEW):
        source = write(tmp_path / "source", files)
        objects.save_directory(location, "ns", "key", source, progress_bar=False)
        shutil.rmtree(source)
    target = tmp_path / "target"

    def begin() -> None:
        shutil.rmtree(target, ignore_errors=True)
        objects.load_directory(location, "ns", "key", target, 0, progress_bar=False)

    begin()
    total = changes("load", location, target)
    for fatal in points(total, trials, seed):
        begin()
        assert run("load", location, target, fatal).returncode == -signal.SIGKILL
        when = f"killed at {fatal} of {total}"
        for name, data in content(target).items():
            if not name.startswith(".kara-load/"):
                assert data in (OLD.get(name), NEW.get(name)), f"{name}, {when}"
        objects.load_directory(location, "ns", "key", target, progress_bar=False)
        assert content(target) == {**OLD, **NEW}, when
        objects.load_directory(location, "ns", "key", target, progress_bar=False, delete=True)
        assert content(target) == NEW, when
        assert not (target / ".kara-load").exists(), when


def test_killed_saves(tmp_path: Path) -> None:
    save_trials(tmp_path, trials=4, seed=1)


def test_killed_loads(tmp_path: Path) -> None:
    load_trials(tmp_path, trials=4, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_saves_killed_at_each_change(tmp_path: Path) -> None:
    save_trials(tmp_path, trials=1000, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_loads_killed_at_each_change(tmp_path: Path) -> None:
    load_trials(tmp_path, trials=1000, seed=4)


def oss_trials(tmp_path: Path, trials: int, seed: int) -> None:
    """Saves to an object store, each to a place of its own, and loads from it."""
    old, new = write(tmp_path / "old", OLD), write(tmp_path / "new", NEW)
    with OssServer(buckets=["bucket"]) as server:
        keys = server.credentials
        options = {"app_key": keys.key_id, "app_secret": keys.key_secret, "use_ssl": False}

        def place(name: object) -> Location:
            location = open_location(f"oss://{server.host}/bucket/{name}", **options)
            objects.save_directory(location, "ns", "key", old, progress_bar=False)
            return location

        with closing(place("rehearsal")) as rehearsal:
            total = changes("save", rehearsal, new, **options)
        for fatal in points(total, trials, seed):
            location, when = place(fatal), f"killed at {fatal} of {total}"
            assert run("save", location, new, fatal, **options).returncode == -signal.SIGKILL
            versions = objects.list_versions(location, "ns", "key")
            assert versions.latest == "0" or fatal > total - 3, when
            for name in versions.names:
                assert not objects.verify_directory(location, "ns", "key", name, progress_bar=False).problems
            objects.save_directory(location, "ns", "key", new, "latest", progress_bar=False)
            load(location, tmp_path / "target", total, fatal, options)
            location.close()


def load(location: Location, target: Path, total: int, fatal: int, options: dict[str, Any]) -> None:
    """A load that is killed somewhere, and the next one."""
    run("load", location, target, fatal, **options)
    objects.load_directory(location, "ns", "key", target, progress_bar=False)
    assert content(target) == NEW, f"killed at {fatal} of {total}"
    shutil.rmtree(target)


def test_killed_between_calls_of_an_object_store(tmp_path: Path) -> None:
    oss_trials(tmp_path, trials=2, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_before_each_call_of_an_object_store(tmp_path: Path) -> None:
    oss_trials(tmp_path, trials=1000, seed=6)


def test_a_killed_save_sends_only_what_is_missing(tmp_path: Path) -> None:
    new = write(tmp_path / "new", {f"f{i}": b"%d" % i for i in range(20)})
    location = open_location(f"file://{tmp_path}/db")
    total = changes("save", open_location(f"file://{tmp_path}/rehearsal"), new)
    assert run("save", location, new, total * 2 // 3).returncode == -signal.SIGKILL
    data = tmp_path / "db" / "obj" / "ns" / "key" / "data"
    before = {path: path.stat().st_ino for path in data.iterdir() if not path.name.startswith(".")}
    assert 0 < len(before) < 20
    objects.save_directory(location, "ns", "key", new, progress_bar=False)
    after = {path: path.stat().st_ino for path in data.iterdir()}
    assert len(after) == 20
    assert before.items() <= after.items()
