"""`kara_cache.alluxio` where it differs from alluxiofs 1.0.17: what that gets wrong, what this refuses."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import fsspec
import pytest
from alluxio_places import AlluxioPlace
from mounted import Mounted, mounted
from private_home import PrivateHome, private_home
from published import python_with

from kara_cache.alluxio import AlluxioClient, AlluxioFileSystem, CPOption, LoadState, RMOption
from kara_cache.errors import ConfigError, WorkerUnavailable

pytestmark = pytest.mark.clients

CONTENT = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Two workers over a directory, found by a list."""
    with mounted(tmp_path_factory.mktemp("alluxio"), workers=2) as found:
        yield found


@pytest.fixture
def place(files: Mounted, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own, behind the cache."""
    directory = files.directory / request.node.name.replace("[", "-").replace("]", "")
    directory.mkdir()
    return directory


@pytest.fixture
def fs(files: Mounted) -> Iterator[AlluxioFileSystem]:
    made = AlluxioFileSystem(target_protocol="file", skip_instance_cache=True, **files.options)
    yield made
    made.close()


@pytest.fixture
def client(files: Mounted) -> Iterator[AlluxioClient]:
    made = AlluxioClient(**files.options)
    yield made
    made.close()


# -- the surface --------------------------------------------------------------------------------------

SURFACE = """
import inspect, json
from alluxiofs import AlluxioClient, AlluxioFileSystem, setup_logger
from alluxiofs.client.core import AlluxioPathStatus, LoadState
from alluxiofs.core import CPOption, RMOption
def described(call):
    return [
        [name, None if each.default is each.empty else repr(each.default), each.kind.name]
        for name, each in inspect.signature(call).parameters.items()
    ]
def public(kind):
    return {name: described(call) for name, call in vars(kind).items() if inspect.isfunction(call)
            and not name.startswith("_") and name not in ("fallback_handler",)}
print(json.dumps({
    "client": public(AlluxioClient),
    "filesystem": public(AlluxioFileSystem),
    "constructors": {"client": described(AlluxioClient), "filesystem": described(AlluxioFileSystem.__init__)},
    "states": [state.name for state in LoadState],
    "options": {kind.__name__: described(kind) for kind in (AlluxioPathStatus, CPOption, RMOption)},
}))
"""


@pytest.fixture(scope="module")
def surface() -> Any:
    """Names, parameters and defaults of alluxiofs 1.0.17, as Python sees them."""
    run = [str(python_with("alluxiofs==1.0.17")), "-c", SURFACE]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kind", "ours"), [("client", AlluxioClient), ("filesystem", AlluxioFileSystem)])
def test_every_method_takes_what_the_published_one_takes(surface: Any, kind: str, ours: type) -> None:
    for name, parameters in surface[kind].items():
        taken = inspect.signature(getattr(ours, name)).parameters
        for position, (parameter, default, form) in enumerate(parameters):
            if form in ("VAR_POSITIONAL", "VAR_KEYWORD") or (name, parameter) == ("unstrip_protocol", "path"):
                continue  # which fsspec calls `name`
            assert parameter in taken, f"{name} lacks {parameter}"
            assert list(taken).index(parameter) == position, f"{name}: {parameter} is elsewhere"
            if default is not None:
                assert repr(taken[parameter].default) == default, f"{name}: {parameter}"


def test_values_have_the_fields_of_the_published_ones(surface: Any) -> None:
    import kara_cache.alluxio

    for name, fields in surface["options"].items():
        ours = inspect.signature(getattr(kara_cache.alluxio, name)).parameters
        assert list(ours) == [field for field, _, _ in fields]
    assert set(surface["states"]) < set(kara_cache.alluxio.LoadState.__members__)


def test_fsspec_knows_the_names() -> None:
    found = {entry.name: entry for entry in entry_points(group="fsspec.specs")}
    for name in ("alluxiofs", "alluxio"):
        if importlib.util.find_spec("alluxiofs") is None:
            assert found[name].load() is AlluxioFileSystem


PREFERS_ALLUXIOFS = """
import sys
sys.path.insert(0, sys.argv[1])
from kara_cache.alluxio.scheme import AlluxioFileSystem
print(AlluxioFileSystem)
"""


def test_alluxiofs_itself_keeps_its_name_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "alluxiofs.py").write_text("AlluxioFileSystem = 'theirs'")
    run = [sys.executable, "-c", PREFERS_ALLUXIOFS, str(tmp_path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "theirs"


# -- what alluxiofs gets wrong ------------------------------------------------------------------------


def test_glob_finds_files(fs: AlluxioFileSystem, place: Path) -> None:
    for name in ("a.bin", "b.bin", "c.txt"):
        (place / name).write_bytes(b"x")
    assert fs.glob(f"{place}/*.bin") == [f"{place}/a.bin", f"{place}/b.bin"]
    assert fs.glob(f"file://{place}/**/*.txt") == [f"{place}/c.txt"]


def test_names_of_a_listing_are_names_that_every_method_takes(fs: AlluxioFileSystem, place: Path) -> None:
    (place / "a b&c#%41+中").write_bytes(b"content")
    (name,) = fs.ls(str(place))
    assert fs.cat_file(name) == b"content"
    assert fs.info(name)["name"] == name


def test_what_is_missing_stays_a_file_not_found(
    fs: AlluxioFileSystem, client: AlluxioClient, place: Path
) -> None:
    for call in (fs.info, fs.cat_file, fs.open, fs.ls, fs.read, fs.head, fs.rm):
        with pytest.raises(FileNotFoundError):
            call(f"{place}/nothing")
    with pytest.raises(FileNotFoundError):
        client.read(f"file://{place}/nothing")
    assert fs.exists(f"{place}/nothing") is False
    assert fs.get_error_metrics() == {"error_counts": {}, "last_errors": {}}


def test_open_writes(fs: AlluxioFileSystem, place: Path) -> None:
    with fs.open(f"file://{place}/new", "wb") as file:
        for start in range(0, len(CONTENT), 1 << 20):
            file.write(CONTENT[start : start + (1 << 20)])
    assert (place / "new").read_bytes() == CONTENT
    with fs.open(f"{place}/new", "wb"):
        pass
    assert (place / "new").read_bytes() == b""


def test_removing_from_the_cache_alone_leaves_the_file(
    fs: AlluxioFileSystem, files: Mounted, place: Path
) -> None:
    (place / "file").write_bytes(CONTENT)
    fs.cat_file(f"{place}/file")
    for keyword in ("remove_alluxio_only", "removeAlluxioOnly"):
        assert fs.rm(f"{place}/file", **{keyword: True})
        assert (place / "file").read_bytes() == CONTENT
    assert cached(fs, place / "file") == 0


@pytest.mark.parametrize("keyword", ["recursive", "recursive_alias", "recursiveAlias"])
def test_directories_are_deleted_if_asked_for(fs: AlluxioFileSystem, place: Path, keyword: str) -> None:
    (place / "a").mkdir()
    (place / "a" / "file").write_bytes(b"x")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{place}/a")
    assert fs.rm(f"{place}/a", **{keyword: True})
    assert not (place / "a").exists()


def test_mounts_are_not_deleted(fs: AlluxioFileSystem, place: Path) -> None:
    with pytest.raises(PermissionError, match="mounts"):
        fs.rm(str(place), recursive=True, deleteMountPoint=True)
    assert place.is_dir()


def test_moving_takes_a_directory_with_everything_in_it(fs: AlluxioFileSystem, place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "file").write_bytes(b"x")
    assert fs.mv(f"{place}/a", f"{place}/c")
    assert [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()] == ["c/b/file"]
    assert not (place / "a").exists()


@pytest.mark.parametrize("order", ["documented", "of 1.0.17"])
def test_upload_and_download_in_either_order(
    fs: AlluxioFileSystem, place: Path, tmp_path: Path, order: str
) -> None:
    (tmp_path / "local").write_bytes(CONTENT)
    arguments = [f"{tmp_path}/local", f"alluxiofs://{place}/up"]
    fs.upload(*(arguments if order == "documented" else reversed(arguments)))
    assert (place / "up").read_bytes() == CONTENT
    arguments = [f"{tmp_path}/again", f"file://{place}/up"]
    assert fs.download(*(arguments if order == "documented" else reversed(arguments))) == len(CONTENT)
    assert (tmp_path / "again").read_bytes() == CONTENT
    assert fs.download(rpath=f"{place}/up", lpath=f"{tmp_path}/named") == len(CONTENT)


def test_two_urls_are_no_upload(fs: AlluxioFileSystem) -> None:
    with pytest.raises(ValueError, match="both urls"):
        fs.upload("s3://bucket/a", "s3://bucket/b")


def test_a_typing_error_is_an_error(files: Mounted) -> None:
    with pytest.raises(ConfigError, match="did you mean 'worker_hosts'"):
        AlluxioFileSystem(worker_host="127.0.0.1:1")
    with pytest.raises(ValueError, match="fs and target_protocol"):
        AlluxioFileSystem(fs=fsspec.filesystem("file"), target_protocol="file", **files.options)


def test_what_has_no_meaning_is_one_warning_at_the_line_of_the_caller(files: Mounted) -> None:
    with pytest.warns(UserWarning, match="use_mem_cache .*mcap_enabled ") as caught:
        AlluxioClient(use_mem_cache=True, mcap_enabled=False, **files.options).close()
    with pytest.warns(UserWarning, match="use_mem_cache") as also:
        AlluxioFileSystem(use_mem_cache=True, skip_instance_cache=True, **files.options)
    assert [warning.filename for warning in (*caught, *also)] == [__file__, __file__]


def test_a_filesystem_in_place_of_a_protocol(files: Mounted, place: Path) -> None:
    (place / "file").write_bytes(b"content")
    fs = AlluxioFileSystem(fs=fsspec.filesystem("file"), skip_instance_cache=True, **files.options)
    assert fs.target_protocol == "file"
    assert fs.read(f"{place}/file") == b"content"
    assert fs.unstrip_protocol(f"{place}/file") == f"file://{place}/file"
    fs.close()


def test_it_pickles_as_its_arguments(fs: AlluxioFileSystem, client: AlluxioClient, place: Path) -> None:
    (place / "file").write_bytes(b"content")
    again = pickle.loads(pickle.dumps(fs))
    assert again.read(f"{place}/file") == b"content"


# -- the client ---------------------------------------------------------------------------------------


def test_statuses(client: AlluxioClient, place: Path) -> None:
    (place / "sub").mkdir()
    (place / "file").write_bytes(b"content")
    listed = client.listdir(f"file://{place}")
    assert [(status.type, status.name, status.length) for status in listed] == [
        ("file", "file", 7),
        ("directory", "sub", 0),
    ]
    assert [status.ufs_path for status in listed] == [f"file://{place}/file", f"file://{place}/sub"]
    status = client.get_file_status(f"file://{place}/file")
    assert status == listed[0] == client.listdir(f"file://{place}/file")[0]
    assert status.path == f"/data/{place.name}/file"


def test_reads(client: AlluxioClient, place: Path) -> None:
    (place / "file").write_bytes(CONTENT)
    (place / "small").write_bytes(b"small")
    url = f"file://{place}/file"
    assert client.read(url) == CONTENT
    assert client.read_range(url, 100, 50) == CONTENT[100:150]
    assert client.read_range(url, 100, -1) == client.read_range(url, 100, None) == CONTENT[100:]
    assert client.read_range(url, 100, 0) == b""
    assert client.read_range(url, len(CONTENT) - 5, 100) == CONTENT[-5:]
    assert client.read_file_range(url) == CONTENT
    assert client.read_chunked(url, chunk_size=7).read() == CONTENT
    assert client.read_batch([url, f"file://{place}/small"]) == [CONTENT, b"small"]
    assert client.read_batch_threaded([f"file://{place}/small"]) == [b"small"]
    assert (client.head(url, 3), client.tail(url, 3), client.tail(url, 0)) == (CONTENT[:3], CONTENT[-3:], b"")


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -2), ("0", 5), (0, "5")])
def test_ranges_that_are_none(client: AlluxioClient, offset: Any, length: Any) -> None:
    with pytest.raises(ValueError, match="want 0 or more"):
        client.read_range("file:///x", offset, length)


def test_changes(client: AlluxioClient, place: Path) -> None:
    url = f"file://{place}"
    assert client.write(f"{url}/a", b"one")
    assert client.write_chunked(f"{url}/b", iter([b"tw", b"o"]))
    assert client.mkdir(f"{url}/d")
    assert client.mkdir(f"{url}/d")
    assert client.touch(f"{url}/d/empty")
    assert client.cp(f"{url}/a", f"{url}/d/a", CPOption())
    assert client.mv(f"{url}/b", f"{url}/d/b")
    assert client.rm(f"{url}/a")
    assert (place / "a").read_bytes() == b"one"
    assert client.rm(f"{url}/a", RMOption(remove_alluxio_only=False))
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["d", "d/a", "d/b", "d/empty"]
    assert (place / "d" / "b").read_bytes() == b"two"
    assert client.rm(f"{url}/d", RMOption(recursive=True, remove_alluxio_only=False))
    assert not list(place.iterdir())


def test_a_file_is_replaced_as_a_whole(client: AlluxioClient) -> None:
    with pytest.raises(io.UnsupportedOperation, match="as a whole"):
        client.write_page("file:///x", 0, b"page")


@pytest.mark.parametrize(
    ("path", "error"), [("no/url", ValueError), (b"s3://bucket/a", TypeError), (None, TypeError)]
)
def test_paths_that_are_none(client: AlluxioClient, path: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="path"):
        client.read(path)


def test_a_path_that_no_mount_covers(client: AlluxioClient) -> None:
    with pytest.raises(ConfigError, match="no mount covers 's3://elsewhere/a'; mounts: data="):
        client.read("s3://elsewhere/a")


# -- loading ------------------------------------------------------------------------------------------


def cached(fs: AlluxioFileSystem, path: Path) -> int:
    """Pages of a file that are with the workers."""
    workers = fs.client.explain(fs.kara_path(str(path)))["workers"]
    return sum(int(worker["cached"]) for worker in workers)


def test_load(fs: AlluxioFileSystem, client: AlluxioClient, place: Path) -> None:
    for name in ("a", "b"):
        (place / name).write_bytes(CONTENT)
    url = f"file://{place}/"
    assert client.load_progress(url) == LoadState.FAILED  # nobody asked for it
    assert client.stop_load(url) is False
    assert client.load(url) is True
    assert [cached(fs, place / name) for name in ("a", "b")] == [3, 3]
    progress = client.load_progress(url)
    assert progress == LoadState.SUCCEEDED
    state, content = progress
    assert (state, content["jobState"], content["path"]) == (LoadState.SUCCEEDED, "SUCCEEDED", url)
    assert content["job"]["receipt"]["pages_present"] == 6
    assert client.stop_load(url) is True


def test_a_load_of_nothing_fails_and_says_why(client: AlluxioClient, place: Path) -> None:
    url = f"file://{place}/nothing"
    assert client.submit_load(url) is True
    assert client.load(url) is False
    state, content = client.load_progress(url)
    assert state is LoadState.FAILED
    assert content["message"]


def test_waiting_for_a_load_ends(client: AlluxioClient, place: Path) -> None:
    for number in range(200):
        (place / f"{number}").write_bytes(b"x")
    waits: list[float] = []
    assert client.load(f"file://{place}", timeout=0, sleep=waits.append) in (True, False)
    assert waits == []
    assert client.load(f"file://{place}") is True


def test_a_path_loaded_before_the_filesystem_is_there(files: Mounted, place: Path) -> None:
    (place / "file").write_bytes(CONTENT)
    fs = AlluxioFileSystem(
        preload_path=f"file://{place}", target_protocol="file", skip_instance_cache=True, **files.options
    )
    assert cached(fs, place / "file") == 3
    assert fs.load_file_from_ufs_to_alluxio(f"{place}/file") is True
    fs.close()


def test_a_preload_that_fails_is_logged(
    files: Mounted, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{place}/nothing"
    AlluxioFileSystem(preload_path=url, target_protocol="file", skip_instance_cache=True, **files.options)
    assert f"preload of {url}: not all of it is in the cache" in caplog.messages


# -- workers that go ----------------------------------------------------------------------------------


def test_an_open_file_goes_on_when_every_worker_is_killed(tmp_path: Path) -> None:
    with mounted(tmp_path, workers=2) as files:
        path = files.directory / "file"
        path.write_bytes(CONTENT)
        options = {**files.options, "local_reads": False, "read_ahead_bytes": 0, "connect_timeout_s": 0.5}
        fs = AlluxioFileSystem(target_protocol="file", skip_instance_cache=True, **options)
        with fs.open(str(path)) as file:
            assert file.read(1 << 20) == CONTENT[: 1 << 20]
            for worker in files.cluster.workers:
                worker.kill()
            assert file.read() == CONTENT[1 << 20 :]
        assert fs.ls(str(files.directory)) == [str(path)]
        counts = fs.get_error_metrics()["error_counts"]
        assert sum(counts.values()) >= 1
        assert all(name.startswith("read_") for name in counts)
        client = AlluxioClient(**options)
        with pytest.raises(WorkerUnavailable):  # it has no store of its own
            client.read("/data/file")
        client.close()
        fs.close()


# -- a cluster with Alluxio's listeners ---------------------------------------------------------------


@pytest.mark.etcd
@pytest.mark.s3
@pytest.mark.leaves_running("the worker that was killed runs again, for the tests that follow")
def test_the_dialect_of_alluxio_with_our_own_workers(s3_place: AlluxioPlace) -> None:
    """Membership from etcd, the ring, and every request to /v1 of three of our workers."""
    place, home = s3_place, "own-workers"
    fs = AlluxioFileSystem(
        dialect="alluxio",
        cluster_name="ai-alluxio",
        etcd_hosts="127.0.0.1",
        etcd_port=place.etcd_port,
        target_protocol="s3",
        target_options={"key": "none", "secret": "none", "endpoint_url": "http://127.0.0.1:1"},
        skip_instance_cache=True,
    )
    names = ["plain", "a b", "a&b=c", "a#b", "a+b", "a%41b", "中文"]
    for number, name in enumerate(names):
        place.put(f"{home}/d/{name}", CONTENT[: number * 100_000])
    assert sorted(fs.ls(f"s3://bucket/{home}/d")) == sorted(f"bucket/{home}/d/{name}" for name in names)
    for number, name in enumerate(names):
        assert fs.cat_file(f"s3://bucket/{home}/d/{name}") == CONTENT[: number * 100_000]
    with fs.open(f"bucket/{home}/new", "wb") as file:
        file.write(CONTENT)
    assert place.get(f"{home}/new") == CONTENT
    with fs.open(f"bucket/{home}/new") as file:
        file.seek(-100, 2)
        assert file.read() == CONTENT[-100:]
    assert fs.touch(f"bucket/{home}/empty")
    assert fs.copy(f"bucket/{home}/new", f"bucket/{home}/copied")
    assert fs.mv(f"bucket/{home}/copied", f"bucket/{home}/moved")
    assert fs.rm(f"bucket/{home}/new", remove_alluxio_only=True)
    assert fs.rm(f"bucket/{home}/new")
    left = [*(f"d/{name}" for name in sorted(names)), "empty", "moved"]
    assert place.keys(f"{home}/") == [f"{home}/{name}" for name in left]
    assert not fs.exists(f"bucket/{home}/new")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"bucket/{home}/new")
    assert fs.get_error_metrics()["error_counts"] == {}
    _lose_a_worker(place, fs)
    fs.close()


def _lose_a_worker(place: AlluxioPlace, fs: AlluxioFileSystem) -> None:
    """In the middle of many files, with no store that this process could reach."""
    urls = [
        place.put(f"own-workers/many/{number}", CONTENT[number : number + 300_000]) for number in range(16)
    ]
    files = [fs.open(url) for url in urls]
    assert [file.read(1000) for file in files] == [CONTENT[n : n + 1000] for n in range(16)]
    place.cluster.workers[0].kill()
    try:
        with ThreadPoolExecutor(16) as pool:
            rests = list(pool.map(lambda file: file.read(), files))
    finally:
        place.cluster.workers[0].start()
    assert rests == [CONTENT[n + 1000 : n + 300_000] for n in range(16)]
    for file in files:
        file.close()


def test_a_port_of_the_other_dialect_is_no_missing_file(files: Mounted) -> None:
    options = {**files.options, "dialect": "alluxio", "connect_timeout_s": 1}
    client = AlluxioClient(**options)
    with pytest.raises(WorkerUnavailable, match="is that the port of an Alluxio worker"):
        client.read(f"file://{files.directory}/file")
    client.close()


# -- nothing configured -------------------------------------------------------------------------------

ZERO = """
from kara_cache.alluxio import AlluxioClient, AlluxioFileSystem

fs = AlluxioFileSystem(target_protocol="file")
print(fs.cat_file({path!r}), fs.client.metrics.reads["store"])
client = AlluxioClient()
listed = client.listdir("file://" + {directory!r})
print(client.read("file://" + {path!r}), [status.name for status in listed])
print(client.load("file://" + {directory!r}), client.load_progress("file://" + {directory!r}).name)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[PrivateHome]:
    (tmp_path / "home").mkdir()
    with private_home(tmp_path / "home") as found:
        yield found


def test_without_a_cluster_the_private_worker_serves(home: PrivateHome, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    directory.mkdir()
    (directory / "file").write_bytes(b"content")
    printed = home.run(ZERO.format(path=str(directory / "file"), directory=str(directory)))
    assert printed.splitlines() == ["b'content' 0", "b'content' ['file']", "True SUCCEEDED"]
    assert home.starts() == 1
