from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from kara_cache.membership.base import MembershipView, MemberState, WorkerInfo
from kara_cache.membership.last_known import LastKnownView

WORKERS = (
    WorkerInfo("1" * 32, "a", 1, capacity_bytes=5),
    WorkerInfo("2" * 32, "b", 2, state=MemberState.PASSIVE, socket_path="/run/x"),
)
VIEW = MembershipView(WORKERS, 42, "etcd")
ETCD = ("http://e1:2379", "http://e2:2379")


@pytest.fixture
def kept(tmp_path: Path) -> LastKnownView:
    return LastKnownView(tmp_path / "state", "ai", ETCD)


def test_a_kept_view_comes_back_as_one_from_disk(kept: LastKnownView) -> None:
    kept.save(VIEW)
    assert kept.load() == MembershipView(WORKERS, 42, "disk")


def test_nothing_kept_is_nothing(kept: LastKnownView) -> None:
    assert kept.load() is None


def test_only_the_owner_may_read_it_and_nothing_else_is_left(kept: LastKnownView) -> None:
    kept.save(VIEW)
    assert kept.path.stat().st_mode & 0o777 == 0o600
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(kept.path.parent) == ["membership-ai.json"]


def test_the_same_workers_are_not_written_again(kept: LastKnownView) -> None:
    kept.save(VIEW)
    first = kept.path.stat().st_ino
    kept.save(MembershipView(WORKERS, 43, "etcd"))
    assert kept.path.stat().st_ino == first

    kept.save(MembershipView(WORKERS[:1], 44, "etcd"))
    assert kept.load() == MembershipView(WORKERS[:1], 44, "disk")


def test_after_a_restored_backup_the_lower_revision_is_the_newer_one(kept: LastKnownView) -> None:
    kept.save(VIEW)
    kept.save(MembershipView(WORKERS[:1], 7, "etcd"))
    assert kept.load() == MembershipView(WORKERS[:1], 7, "disk")


def test_a_cluster_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    kept = LastKnownView(tmp_path, "../x y", ETCD)
    kept.save(VIEW)
    assert os.listdir(tmp_path) == ["membership-..%2Fx%20y.json"]
    assert kept.load() is not None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format":2}', b"\xff" * 100, b'{"format":1,"cluster":"ai"}']
)
def test_damage_is_logged_and_does_without(
    kept: LastKnownView, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept.save(VIEW)
    kept.path.write_bytes(content)
    assert kept.load() is None
    assert "not used" in caplog.text

    kept.save(VIEW)  # and is repaired
    assert kept.load() is not None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_believed(
    kept: LastKnownView, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    kept.save(VIEW)
    kept.path.chmod(mode)
    assert kept.load() is None
    assert "others may write it" in caplog.text


def test_a_file_of_another_user_is_not_believed(kept: LastKnownView, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.save(VIEW)
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    assert kept.load() is None


def test_a_link_is_not_followed(kept: LastKnownView, tmp_path: Path) -> None:
    kept.save(VIEW)
    kept.path.rename(tmp_path / "elsewhere")
    kept.path.symlink_to(tmp_path / "elsewhere")
    assert kept.load() is None


def test_what_is_no_file_does_not_block(kept: LastKnownView) -> None:
    kept.path.parent.mkdir()
    os.mkfifo(kept.path, 0o600)
    assert kept.load() is None


@pytest.mark.parametrize(
    ("cluster", "endpoints"),
    [("ai", ("http://other:2379",)), ("xx", ETCD)],
    ids=["other etcd", "other cluster"],
)
def test_workers_of_others_are_not_ours(
    tmp_path: Path, kept: LastKnownView, cluster: str, endpoints: tuple[str, ...]
) -> None:
    kept.save(VIEW)
    other = LastKnownView(tmp_path / "state", cluster, endpoints)
    kept.path.rename(other.path)
    assert other.load() is None


def test_one_common_endpoint_is_enough(tmp_path: Path, kept: LastKnownView) -> None:
    kept.save(VIEW)
    moved = LastKnownView(tmp_path / "state", "ai", ("http://e3:2379", "http://e2:2379"))
    assert moved.load() is not None


def test_a_directory_that_cannot_be_written_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    kept = LastKnownView(tmp_path / "file", "ai", ETCD)
    with caplog.at_level(logging.WARNING):
        kept.save(VIEW)
        kept.save(VIEW)
    assert caplog.text.count("not kept") == 1
    assert kept.load() is None
