"""Small parts of the dialect: ranges, file status, deadlines, load answers, configuration."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import ConfigError, StaleVersion, UnderStoreError
from kara_cache.load_job import LoadJob, LoadOptions, LoadProgress, LoadState
from kara_cache.ufs.base import FileInfo
from kara_worker.alluxio.api_errors import message_of, status_of
from kara_worker.alluxio.byte_range import RangeNotSatisfiable, parse_range
from kara_worker.alluxio.deadline import answered_within
from kara_worker.alluxio.file_bytes import filling
from kara_worker.alluxio.file_status import file_status, readable_size
from kara_worker.alluxio.load_answers import LoadAnswers, load_options
from kara_worker.alluxio.ufs_names import UnknownMount
from kara_worker.config import WorkerConfig
from kara_worker.fill import Fill
from kara_worker.page_cache import FillPart

# -- ranges -------------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(0, 120), st.integers(0, 120))
def test_ranges_are_slices(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    if last < first or first >= size:
        with pytest.raises(RangeNotSatisfiable):
            parse_range(f"bytes={first}-{last}", size)
        return
    span = parse_range(f"bytes={first}-{last}", size)
    assert span is not None
    assert data[slice(*span)] == data[first : last + 1]


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=4-", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=0-99", (0, 10)),
        ("bytes=0--2", None),  # alluxiofs 1.1.17, the whole file
        ("bytes=1-2,4-5", None),  # several ranges: the whole file, as RFC 9110 allows
        ("lines=1-2", None),
        ("bytes=", None),
        ("bytes=-", None),
    ],
)
def test_range_headers(header: str | None, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize(
    "header", ["bytes=5-3", "bytes=5-4", "bytes=0--1", "bytes=10-", "bytes=-0", "bytes=3--1"]
)
def test_ranges_that_must_not_become_the_whole_file(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 10)


@given(st.text(), st.integers(0, 1 << 50))
def test_no_range_header_breaks_the_parser(header: str, size: int) -> None:
    try:
        span = parse_range(header, size)
    except RangeNotSatisfiable:
        return
    assert span is None or 0 <= span[0] < span[1] <= size


# -- documents ----------------------------------------------------------------------------------------


def test_file_status_says_what_is_known() -> None:
    info = FileInfo("/data/x/a b", 1536, "v1", 12.5)
    assert file_status(info, url="s3://b/x/a b", alluxio_path="/data/x/a%20b") == {
        "mType": "file",
        "mName": "a b",
        "mPath": "/data/x/a%20b",
        "mUfsPath": "s3://b/x/a b",
        "mLength": 1536,
        "mHumanReadableFileSize": "1.50KB",
        "mCompleted": True,
        "mPersisted": True,
        "mContentHash": "v1",
        "mCreationTimeMs": 12500,
        "mLastModificationTimeMs": 12500,
        "mLastAccessTimeMs": 12500,
    }
    assert (
        file_status(FileInfo("/d", 0, "", is_dir=True), url="s3://b", alluxio_path="/d")["mType"]
        == "directory"
    )
    assert [readable_size(n) for n in (0, 1023, 1 << 20, 5 << 40)] == ["0B", "1023B", "1.00MB", "5.00TB"]


def test_only_a_missing_file_is_a_500() -> None:
    statuses = {
        FileNotFoundError(2, "No such file", "/x"): 500,
        UnknownMount("no mount"): 404,
        PermissionError("no"): 403,
        FileExistsError("there"): 409,
        IsADirectoryError("dir"): 409,
        ValueError("bad"): 400,
        ConfigError("bad"): 400,
        StaleVersion("old"): 412,
        UnderStoreError("down"): 503,
        TimeoutError("slow"): 503,
        KeyError("bug"): 503,
    }
    assert {type(e).__name__: status_of(e) for e in statuses} == {
        type(e).__name__: status for e, status in statuses.items()
    }
    assert message_of(KeyError("secret detail")) == "the worker failed: KeyError"
    assert message_of(FileNotFoundError(2, "No such file", "/x")) == "No such file: /x"


# -- fills --------------------------------------------------------------------------------------------


def taken(fill: Fill, stop: int) -> bytes:
    async def main() -> bytes:
        return b"".join([bytes(view) async for view in filling(FillPart(fill, 0, stop))])

    return asyncio.run(main())


def made(data: bytes) -> Fill:
    async def main() -> Fill:
        fill = Fill(0, 0, len(data), keep=True)
        fill.attach(memoryview(bytearray(data)))
        return fill

    return asyncio.run(main())


def test_a_fill_that_is_complete_is_sent_whole() -> None:
    fill = made(b"content")
    fill.finish(())
    assert taken(fill, 7) == b"content"


def test_nothing_of_a_failed_fill_is_sent_as_if_it_were_right() -> None:
    fill = made(b"content")
    fill.valid = 7
    fill.fail(StaleVersion("changed"))
    with pytest.raises(StaleVersion):
        taken(fill, 7)


def test_the_last_byte_waits_until_all_proved_right() -> None:
    async def main() -> list[bytes]:
        fill = Fill(0, 0, 7, keep=True)
        fill.attach(memoryview(bytearray(b"content")))
        fill.valid = 7  # all here, and not yet found to be of one version
        pieces = filling(FillPart(fill, 0, 7))
        got = [bytes(await anext(pieces))]
        asyncio.get_running_loop().call_soon(fill.fail, StaleVersion("changed"))
        with pytest.raises(StaleVersion):
            await anext(pieces)
        return got

    assert asyncio.run(main()) == [b"conten"]


# -- deadlines ----------------------------------------------------------------------------------------


class Asked:
    method, path = "GET", "/v1/info"

    def __init__(self) -> None:
        self.started = False


def test_an_answer_that_does_not_begin_is_given_up() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="no answer within"):
        asyncio.run(answered_within(0.01, Asked(), never()))  # type: ignore[arg-type]


def test_an_answer_that_has_begun_goes_on() -> None:
    async def main() -> str:
        request, gate = Asked(), asyncio.Event()

        async def slow() -> None:
            request.started = True
            asyncio.get_running_loop().call_later(0.05, gate.set)
            await gate.wait()

        await answered_within(0.01, request, slow())  # type: ignore[arg-type]
        return "done"

    assert asyncio.run(main()) == "done"


def test_who_cancels_for_other_reasons_is_obeyed() -> None:
    async def main() -> None:
        task = asyncio.create_task(answered_within(30, Asked(), asyncio.Event().wait()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


# -- load jobs ----------------------------------------------------------------------------------------


class Board:
    """A `LoadBoard` whose one job goes through the states it is given."""

    def __init__(self, *states: LoadState) -> None:
        self._states = list(states)
        self.submitted: list[tuple[str, LoadOptions]] = []

    def _job(self, state: LoadState) -> LoadJob:
        return LoadJob("j" * 32, "/data/x", state, LoadOptions(), LoadProgress(), None, 0.0)

    async def submit(self, path: str, options: LoadOptions) -> LoadJob:
        self.submitted.append((path, options))
        return self._job(LoadState.QUEUED)

    async def find(self, path_or_id: str) -> LoadJob | None:
        if not self._states:
            return None
        return self._job(self._states.pop(0) if len(self._states) > 1 else self._states[0])

    async def stop(self, path_or_id: str) -> LoadJob | None:
        return self._job(LoadState.STOPPED) if self._states else None

    async def list(self) -> list[LoadJob]:
        return []


def ask(board: Board | None, hold_s: float = 5.0, **arguments: str) -> dict[str, Any]:
    return asyncio.run(LoadAnswers(board, hold_s=hold_s).answer("/data/x", "s3://b/x", arguments))


def test_progress_is_held_back_until_the_job_has_ended() -> None:
    board = Board(LoadState.QUEUED, LoadState.RUNNING, LoadState.SUCCEEDED)
    answer = ask(board, opType="progress")
    assert (answer["jobState"], answer["path"]) == ("SUCCEEDED", "s3://b/x")


def test_progress_of_a_long_job_comes_in_the_words_of_the_client() -> None:
    assert ask(Board(LoadState.QUEUED), hold_s=0.0, opType="progress")["jobState"] == "RUNNING"


def test_unknown_jobs() -> None:
    assert ask(Board(), opType="progress")["jobState"] == "FAILED"
    assert ask(Board(), opType="stop")["success"] is False
    assert ask(None, opType="submit")["success"] is False
    with pytest.raises(ValueError, match="opType"):
        ask(Board(), opType="pause")


def test_submit_takes_the_options_of_alluxio() -> None:
    board = Board()
    answer = ask(
        board,
        opType="submit",
        verify="true",
        skipIfExists="false",
        bandwidth="100MB",
        fileFilterRegx=r"\.parquet$",
    )
    assert answer["success"] is True
    assert board.submitted == [
        (
            "/data/x",
            LoadOptions(
                verify=True,
                skip_if_cached=False,
                bandwidth_bytes_per_s=100_000_000,
                file_filter=r"\.parquet$",
            ),
        )
    ]
    assert load_options({}) == LoadOptions()


# -- configuration ------------------------------------------------------------------------------------

SECRET = "literal:" + "s" * 20


def load(tmp_path: Any, **settings: Any) -> WorkerConfig:
    return WorkerConfig.load(env={}, page_dirs=[str(tmp_path / "pages")], socket_dir="/tmp/s", **settings)


def test_all_listeners_are_off_by_default(tmp_path: Any) -> None:
    assert not load(tmp_path).alluxio.enabled


def test_loopback_needs_nothing_where_nobody_is_asked(tmp_path: Any) -> None:
    assert load(tmp_path, alluxio_list_port=0, alluxio_dict_port=0, alluxio_data_port=0).alluxio.enabled


@pytest.mark.parametrize("listener", ["list", "dict", "data"])
def test_beyond_loopback_it_has_to_be_said(tmp_path: Any, listener: str) -> None:
    settings = {f"alluxio_{listener}_port": 0, "alluxio_host": "0.0.0.0"}
    with pytest.raises(ConfigError, match=f"alluxio_{listener}_port"):
        load(tmp_path, **settings)
    load(tmp_path, **settings, alluxio_anonymous=[listener])
    others = [name for name in ("list", "dict", "data") if name != listener]
    with pytest.raises(ConfigError):
        load(tmp_path, **settings, alluxio_anonymous=others)


def test_a_cluster_with_a_secret_has_no_open_door_on_loopback(tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    load(tmp_path, secret=f"file:{secret}", alluxio_list_port=0)  # tokens are asked for
    with pytest.raises(ConfigError, match="alluxio_s3_keys"):
        load(tmp_path, secret=f"file:{secret}", alluxio_data_port=0)


def test_s3_keys_are_read_by_line_and_never_shown(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("writer:topsecret-1\nreader:topsecret-2:read\n")
    config = load(tmp_path, alluxio_data_port=0, alluxio_s3_keys=f"file:{keys}")
    writer, reader = config.alluxio.keys()
    assert (writer.access_key, writer.secret_key, writer.read_only) == ("writer", "topsecret-1", False)
    assert reader.read_only
    assert "topsecret" not in repr(reader) + repr(config)
    keys.write_text("writer:short\n")
    with pytest.raises(ConfigError, match="line 1") as caught:
        load(tmp_path, alluxio_data_port=0, alluxio_s3_keys=f"file:{keys}")
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"alluxio_anonymous": ["web"]},
        {"alluxio_data_port": 70000},
        {"alluxio_deadline_s": 30},
        {"private": True, "alluxio_list_port": 0},
    ],
)
def test_wrong_settings(tmp_path: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, **settings)


def test_the_example_of_the_document(tmp_path: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "alluxio.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```toml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for name in ("secret", "s3_keys"):
        (tmp_path / name).write_text("writer:topsecret-1-and-more\n")
    (tmp_path / "worker.toml").write_text(
        block.replace("/etc/kara", str(tmp_path)).replace("/ssd", str(tmp_path))
    )
    config = WorkerConfig.load(file=tmp_path / "worker.toml", env={}, socket_dir="/tmp/s")
    alluxio = config.alluxio
    assert (alluxio.list_port, alluxio.dict_port, alluxio.data_port) == (28082, 28080, 29998)
    assert set(alluxio.anonymous) == {"list", "dict", "data"}
    assert not alluxio.anonymous_writes


def test_workers_of_one_node_have_ports_of_their_own(tmp_path: Any) -> None:
    config = load(tmp_path, workers=2, alluxio_list_port=7000, alluxio_data_port=0)
    assert [(c.alluxio.list_port, c.alluxio.dict_port, c.alluxio.data_port) for c in config.split()] == [
        (7000, None, 0),
        (7002, None, 0),
    ]
