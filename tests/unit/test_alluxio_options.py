from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.alluxio import CPOption, LoadReport, LoadState, RMOption, setup_logger
from kara_cache.alluxio.load_report import report_of, report_of_document
from kara_cache.alluxio.options import WITHOUT_MEANING, AlluxioOptions, read_options, target_of
from kara_cache.alluxio.path_status import AlluxioPathStatus, human_size, status_of, status_of_document
from kara_cache.config import ClientConfig
from kara_cache.errors import ConfigError
from kara_cache.load_job import LoadJob, LoadOptions, LoadProgress
from kara_cache.ufs.base import FileInfo

VIRTUAL_NODES = "alluxio.user.worker.selection.policy.consistent.hash.virtual.node.count.per.worker"
PAGE_SIZE = "alluxio.worker.page.store.page.size"


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        ({}, {}),
        ({"cluster_name": "ai", "etcd_hosts": "a,b", "etcd_port": 1}, {"etcd_port": 1, "etcd_hosts": "a,b"}),
        ({"worker_hosts": "a,b"}, {"worker_hosts": ("a:28080", "b:28080")}),
        ({"worker_hosts": "a, b:9", "worker_http_port": 7}, {"worker_hosts": ("a:7", "b:9")}),
        ({"worker_hosts": ["[::1]", "[::2]:9"]}, {"worker_hosts": ("[::1]:28080", "[::2]:9")}),
        ({"load_balance_domain": "lb", "worker_http_port": "9"}, {"worker_hosts": ("lb:9",)}),
        ({"concurrency": 5}, {"connections_per_worker": 5}),
        ({"concurrency": 5, "connections_per_worker": 6}, {"connections_per_worker": 6}),
        ({"etcd_username": None, "timeout_s": "5s"}, {"timeout_s": "5s"}),
        ({"options": {"alluxio.cluster.name": "ai"}}, {"cluster_name": "ai"}),
        ({"options": {"alluxio.cluster.name": "ai"}, "cluster_name": "mine"}, {"cluster_name": "mine"}),
        (
            {"options": {"alluxio.worker.http.server.port": 7}, "worker_hosts": "a"},
            {"worker_hosts": ("a:7",)},
        ),
        ({"options": {VIRTUAL_NODES: "2000", PAGE_SIZE: "4MB"}}, {}),
        ({"dialect": "alluxio"}, {"cluster_name": "DefaultAlluxioCluster"}),
    ],
)
def test_what_becomes_the_configuration_of_our_client(
    given_options: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = read_options(given_options).client
    assert {key: found[key] for key in expected} == expected
    assert found.keys() - expected.keys() <= {"cluster_name"}
    ClientConfig.load(env={}, **found)


def test_virtual_nodes_by_keyword_and_by_property() -> None:
    assert read_options({}).virtual_nodes == 5
    assert read_options({"hash_node_per_worker": 7}).virtual_nodes == 7
    assert read_options({"options": {VIRTUAL_NODES: "2000"}}).virtual_nodes == 2000


def test_options_of_stores_and_of_fsspec_pass() -> None:
    found = read_options({"s3": {"anon": True}, "use_listings_cache": True})
    assert (found.stores, found.fsspec) == ({"s3": {"anon": True}}, {"use_listings_cache": True})


@pytest.mark.parametrize(
    ("given_options", "says"),
    [
        ({"worker_host": "a"}, "'worker_host': unknown keyword, did you mean 'worker_hosts'"),
        ({"mcap_enable": True}, "did you mean 'mcap_enabled'"),
        ({"zzz": 1}, "unknown keyword; known: .*cluster_name"),
        ({"dialect": "hdfs"}, "dialect: want .*'hdfs'"),
        ({"hash_node_per_worker": 0}, "hash_node_per_worker: want a number, 1 .*, got 0"),
        ({"hash_node_per_worker": True}, "hash_node_per_worker"),
        ({"worker_http_port": 70000, "worker_hosts": "a"}, "worker_http_port: .* 65535, got 70000"),
        ({"concurrency": "many"}, "concurrency: want a number"),
        ({"options": {PAGE_SIZE: "huge"}}, "page_size: .*'huge'"),
        ({"options": {"page.size": 1}}, "'page.size' is no property of Alluxio"),
        ({"options": "alluxio.x=1"}, "options: want Alluxio's properties"),
        ({"load_balance_domain": "a", "worker_hosts": "b"}, "both set"),
    ],
)
def test_what_is_wrong_is_named(given_options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_options(given_options)


def _constructor(given_options: dict[str, Any]) -> AlluxioOptions:
    """The warning is about the line that called it."""
    return read_options(given_options)


def test_all_that_is_without_effect_is_one_warning() -> None:
    given_options = dict.fromkeys(WITHOUT_MEANING, 1) | {"options": {"alluxio.worker.tieredstore.levels": 1}}
    with pytest.warns(UserWarning, match="without effect: ") as caught:
        assert _constructor(given_options) == AlluxioOptions()
    (only,) = caught
    for name in (*WITHOUT_MEANING, "alluxio.worker.tieredstore.levels"):
        assert f"{name} (" in str(only.message)
    assert only.filename == __file__


@given(st.dictionaries(st.sampled_from(["etcd_port", "timeout_s", "token", "tls_ca"]), st.just("x")))
def test_keys_of_our_client_pass_as_they_are(keys: dict[str, str]) -> None:
    assert read_options(keys).client == keys


class _Positional(fsspec.AbstractFileSystem):
    protocol = ("first", "second")

    def __init__(self, where: str, how: int = 1, **more: Any) -> None:
        super().__init__(**more)


def test_a_filesystem_in_place_of_protocol_and_options() -> None:
    assert target_of(LocalFileSystem(auto_mkdir=True)) == ("file", {"auto_mkdir": True})
    assert target_of(_Positional("here", use_listings_cache=False)) == (
        "first",
        {"where": "here", "use_listings_cache": False},
    )
    with pytest.raises(TypeError, match="fs: want a filesystem of fsspec, got object"):
        target_of(object())


def test_fields_of_a_status_are_those_of_the_published_client() -> None:
    fields = (
        "type name path ufs_path length human_readable_file_size completed owner group mode creation_time_ms "
        "last_modification_time_ms last_access_time_ms persisted in_alluxio_percentage content_hash"
    )
    assert list(AlluxioPathStatus.__dataclass_fields__) == fields.split()


def test_the_status_of_a_file_and_of_a_directory() -> None:
    file = status_of(FileInfo("/s3/a/b.txt", 77542, "etag", 1.5), "s3://bucket/a/b.txt")
    assert (file.type, file.name, file.length, file.human_readable_file_size) == (
        "file",
        "b.txt",
        77542,
        "75.72KB",
    )
    assert (file.last_modification_time_ms, file.content_hash) == (1500, "etag")
    directory = status_of(FileInfo("/s3/a", 0, "", is_dir=True), "s3://bucket/a")
    assert (directory.type, directory.human_readable_file_size, directory.creation_time_ms) == (
        "directory",
        "0B",
        0,
    )


def test_what_a_worker_leaves_out_of_a_status_is_as_in_the_published_client() -> None:
    assert status_of_document({}) == AlluxioPathStatus(
        "", "", "", "", 0, "", None, "", "", "", 0, 0, 0, None, 0, ""
    )
    told = {"mType": "file", "mName": "a", "mLength": 3, "mContentHash": "x", "mOwner": "me", "mOther": 1}
    assert status_of_document(told).length == 3


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.00KB"), (5 << 30, "5.00GB"), (2**70, "1048576.00PB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_size(size) == text


def test_progress_is_a_state_and_a_pair() -> None:
    progress = LoadReport(LoadState.SUCCEEDED, {"jobState": "SUCCEEDED"})
    state, content = progress
    assert (state, content) == (LoadState.SUCCEEDED, {"jobState": "SUCCEEDED"})
    assert progress == LoadState.SUCCEEDED
    assert operator.eq(LoadState.SUCCEEDED, progress)
    assert progress != LoadState.FAILED
    assert (progress.name, progress.value) == ("SUCCEEDED", "SUCCEEDED")
    assert progress == LoadReport(LoadState.SUCCEEDED, {"jobState": "SUCCEEDED"})


@pytest.mark.parametrize(
    ("text", "state"), [("RUNNING", LoadState.RUNNING), ("FAILED_WITH: 3 files", LoadState.FAILED)]
)
def test_what_a_worker_says_of_a_load(text: str, state: LoadState) -> None:
    assert report_of_document({"jobState": text}) == state


def test_a_job_that_waits_is_running_for_those_who_know_no_other_word() -> None:
    job = LoadJob("0" * 32, "/s3/a", LoadState.QUEUED, LoadOptions(), LoadProgress(), None, 1.0)
    state, content = report_of(job, "s3://bucket/a")
    assert (state, content["jobState"], content["path"]) == (LoadState.RUNNING, "RUNNING", "s3://bucket/a")
    assert content["job"]["state"] == "QUEUED"


@pytest.mark.parametrize("document", [{}, {"jobState": "DANCING"}])
def test_a_state_that_is_none(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        report_of_document(document)


def test_defaults_of_removal_and_copy_are_those_of_the_published_client() -> None:
    assert vars(RMOption()) == {
        "recursive": False,
        "recursiveAlias": False,
        "sync_parent_next_time": False,
        "remove_unchecked_option": False,
        "remove_alluxio_only": True,
        "delete_mount_point": False,
    }
    assert vars(CPOption()) == {
        "recursive": True,
        "recursiveAlias": False,
        "forced": False,
        "thread": None,
        "buffer_size": None,
        "preserve": True,
    }


@pytest.fixture
def package_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("kara_cache")
    before, level = list(logger.handlers), logger.level
    yield logger
    for handler in logger.handlers[len(before) :]:
        handler.close()
    logger.handlers[:] = before
    logger.setLevel(level)


def test_the_logger_writes_each_line_once(package_logger: logging.Logger, tmp_path: Path) -> None:
    setup_logger(tmp_path, logging.WARNING)
    logger = setup_logger(tmp_path / ".", level="debug")
    assert logger is package_logger
    logging.getLogger("kara_cache.alluxio.anything").debug("a detour")
    (line,) = (tmp_path / "user.log").read_text().splitlines()
    assert line.endswith(" - kara_cache.alluxio.anything - DEBUG - a detour")


def test_where_and_how_much_is_logged_by_the_environment(
    package_logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLUXIO_PYTHON_SDK_LOG_PATH", str(tmp_path / "logs"))
    monkeypatch.setenv("ALLUXIO_PYTHON_SDK_LOG_LEVEL", "ERROR")
    setup_logger().warning("not worth a line")
    package_logger.error("worth one")
    assert (tmp_path / "logs" / "user.log").read_text().endswith("worth one\n")
    assert setup_logger(level_str="INFO").level == logging.INFO


def test_a_level_that_is_none_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LOUD"):
        setup_logger(tmp_path / "logs", "loud")
    assert not (tmp_path / "logs").exists()


def test_importing_the_package_warns_of_nothing_and_logs_nowhere() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import kara_cache.alluxio.filesystem  # noqa: F401
    assert not logging.getLogger("kara_cache.alluxio").handlers
