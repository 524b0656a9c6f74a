"""The examples of Alluxio's documentation of its Python API, with only the import changed.

https://documentation.alluxio.io/ee-ai-cn/data-access/fsspec (version 3.7). In order and as they stand there,
but for the port of etcd, two typing errors (a full-width comma and a missing one), and paths: the examples
say /path/to/file for what is s3://path/to/file, and here it is in the bucket that there is.
"""

from __future__ import annotations

import io
import logging
import os
import subprocess
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import fsspec
import pytest
from alluxio_places import AlluxioPlace
from published import python_with
from services import require_module

from kara_cache.alluxio import AlluxioClient, AlluxioFileSystem, LoadState, setup_logger

pytestmark = [
    pytest.mark.clients,
    pytest.mark.s3,
    pytest.mark.etcd,
    pytest.mark.usefixtures("filesystems_end_with_their_test"),
]

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 20
ROWS = 1000


@pytest.fixture(scope="module")
def place(s3_place: AlluxioPlace) -> AlluxioPlace:
    return s3_place


@pytest.fixture(scope="module")
def dataset(place: AlluxioPlace) -> str:
    """Two files of parquet, `file1.parquet` and `file2.parquet`."""
    pa, parquet = (require_module(f"pyarrow{name}") for name in ("", ".parquet"))
    for number in (1, 2):
        body = io.BytesIO()
        columns = {"id": list(range(ROWS)), "label": [f"row {row}" for row in range(ROWS)]}
        parquet.write_table(pa.table(columns), body)
        place.put(f"path/to/dataset/file{number}.parquet", body.getvalue())
    return "s3://bucket/path/to/dataset/"


@pytest.fixture
def directory(request: pytest.FixtureRequest) -> str:
    """One of the test's own, in the bucket."""
    return f"documents/{request.node.name}"


@pytest.fixture
def file(place: AlluxioPlace, directory: str) -> str:
    place.put(f"{directory}/file", CONTENT)
    return f"/bucket/{directory}/file"


@pytest.fixture
def alluxio_fs(place: AlluxioPlace) -> Any:
    return fsspec.filesystem(
        "alluxiofs",
        cluster_name="ai-alluxio",
        etcd_hosts="127.0.0.1",
        etcd_port=place.etcd_port,
        target_protocol="s3",
        target_options=place.s3_options,
    )


@pytest.fixture
def no_handlers_left() -> Iterator[None]:
    logger = logging.getLogger("kara_cache")
    before, level = list(logger.handlers), logger.level
    yield
    for handler in logger.handlers[len(before) :]:
        handler.close()
    logger.handlers[:] = before
    logger.setLevel(level)


# -- loading data into the cluster --------------------------------------------------------------------


def test_a_distributed_load(place: AlluxioPlace, dataset: str) -> None:
    alluxio_client = AlluxioClient(
        cluster_name="ai-alluxio", etcd_hosts="127.0.0.1", etcd_port=place.etcd_port
    )
    assert alluxio_client.load("s3://bucket/path/to/dataset/")  # waits, where the document asks again
    assert alluxio_client.submit_load("s3://bucket/path/to/dataset/")
    progress = alluxio_client.load_progress("s3://bucket/path/to/dataset/")
    assert progress.state in (LoadState.RUNNING, LoadState.VERIFYING, LoadState.SUCCEEDED)
    assert alluxio_client.stop_load("s3://bucket/path/to/dataset/")
    alluxio_client.close()


# -- making a filesystem ------------------------------------------------------------------------------


def test_a_filesystem_with_options_and_a_logger(
    place: AlluxioPlace, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_handlers_left: None
) -> None:
    monkeypatch.chdir(tmp_path)

    # Register Alluxio to fsspec
    fsspec.register_implementation("alluxiofs", AlluxioFileSystem, clobber=True)

    # Create Alluxio filesystem
    alluxio_options = {
        "alluxio.worker.page.store.page.size": "4MB",
    }
    alluxio_fs = fsspec.filesystem(
        "alluxiofs",
        cluster_name="ai-alluxio",
        etcd_hosts="127.0.0.1",  # the ip address of etcd
        etcd_port=place.etcd_port,  # the port of etcd
        target_protocol="s3",
        options=alluxio_options,
        logger=setup_logger("./", level=logging.DEBUG),
    )

    assert alluxio_fs.cat_file(file) == CONTENT
    logging.getLogger("kara_cache").info("written to ./user.log")
    assert "written to ./user.log" in (tmp_path / "user.log").read_text()


def test_virtual_nodes_and_page_size(place: AlluxioPlace, dataset: str) -> None:
    alluxio_options = {
        "alluxio.user.worker.selection.policy.consistent.hash.virtual.node.count.per.worker": "2000",
        "alluxio.worker.page.store.page.size": "4MB",
    }

    alluxio_client = AlluxioClient(
        etcd_hosts="127.0.0.1,localhost",
        etcd_port=place.etcd_port,
        options=alluxio_options,
        cluster_name="ai-alluxio",
    )
    assert alluxio_client.get_file_status("s3://bucket/path/to/dataset/file1.parquet").type == "file"
    alluxio_client.close()

    alluxio_fs = fsspec.filesystem(
        "alluxiofs",
        cluster_name="ai-alluxio",
        etcd_hosts="127.0.0.1",
        etcd_port=place.etcd_port,
        target_protocol="s3",
        options=alluxio_options,
    )
    assert len(alluxio_fs.ls(dataset)) == 2


def test_a_filesystem_without_a_store_of_its_own(place: AlluxioPlace, dataset: str) -> None:
    alluxio_fs = fsspec.filesystem(
        "alluxiofs", cluster_name="ai-alluxio", etcd_hosts="127.0.0.1", etcd_port=place.etcd_port
    )
    assert alluxio_fs.ls(dataset) == [f"{dataset}file1.parquet", f"{dataset}file2.parquet"]


def test_options_of_s3(place: AlluxioPlace, file: str) -> None:
    # Example configuration for connecting to S3
    s3_options = {"key": "contract-key", "secret": "alluxio-documents", "endpoint_url": place.endpoint_url}

    # Creating the Alluxio file system object
    alluxio_fs = fsspec.filesystem(
        "alluxiofs",
        cluster_name="ai-alluxio",
        etcd_hosts="127.0.0.1",
        etcd_port=place.etcd_port,
        target_protocol="s3",
        target_options=s3_options,
    )
    assert alluxio_fs.cat_file(file) == CONTENT


# -- the twenty operations ----------------------------------------------------------------------------


def test_1_ls(alluxio_fs: Any, file: str, directory: str) -> None:
    contents = alluxio_fs.ls(f"/bucket/{directory}", False)
    assert contents == [f"bucket/{directory}/file"]
    (detailed,) = alluxio_fs.ls(f"/bucket/{directory}", detail=True)
    assert detailed["ufs_path"] == f"s3://bucket/{directory}/file"


def test_2_info(alluxio_fs: Any, file: str) -> None:
    file_info = alluxio_fs.info(file)
    assert (file_info["type"], file_info["size"]) == ("file", len(CONTENT))


def test_3_isdir(alluxio_fs: Any, file: str, directory: str) -> None:
    is_directory = alluxio_fs.isdir(f"/bucket/{directory}")
    assert is_directory is True
    assert alluxio_fs.isdir(file) is False


def test_4_open(alluxio_fs: Any, place: AlluxioPlace, file: str, directory: str) -> None:
    with alluxio_fs._open(file, mode="rb") as f:
        data = f.read()
    assert data == CONTENT

    with alluxio_fs._open(file, mode="wb") as f:
        f.write(data * 2)
    assert place.get(f"{directory}/file") == CONTENT * 2


def test_5_cat_file(alluxio_fs: Any, file: str) -> None:
    data = alluxio_fs.cat_file(file, start=0, end=100)
    assert data == CONTENT[:100]


def test_6_mkdir(alluxio_fs: Any, directory: str) -> None:
    assert alluxio_fs.mkdir(f"/bucket/{directory}/new_directory") is True


def test_7_rm(alluxio_fs: Any, place: AlluxioPlace, file: str, directory: str) -> None:
    assert alluxio_fs.rm(f"/bucket/{directory}", recursive=True) is True
    assert place.keys(directory) == []


def test_8_touch(alluxio_fs: Any, place: AlluxioPlace, directory: str) -> None:
    assert alluxio_fs.touch(f"/bucket/{directory}/new_file") is True
    assert place.get(f"{directory}/new_file") == b""


def test_9_head(alluxio_fs: Any, file: str) -> None:
    data = alluxio_fs.head(file, num_of_bytes=1024)
    assert data == CONTENT[:1024]


def test_10_tail(alluxio_fs: Any, file: str) -> None:
    data = alluxio_fs.tail(file, num_of_bytes=1024)
    assert data == CONTENT[-1024:]


def test_11_mv(alluxio_fs: Any, place: AlluxioPlace, file: str, directory: str) -> None:
    assert alluxio_fs.mv(file, f"/bucket/{directory}/destination") is True
    assert place.keys(directory) == [f"{directory}/destination"]


def test_12_copy(alluxio_fs: Any, place: AlluxioPlace, file: str, directory: str) -> None:
    assert alluxio_fs.copy(f"/bucket/{directory}", f"/bucket/{directory}-copy", recursive=True) is True
    assert place.get(f"{directory}-copy/file") == CONTENT
    assert place.keys(f"{directory}/") == [f"{directory}/file"]


def test_13_read(alluxio_fs: Any, file: str) -> None:
    data = alluxio_fs.read(file)
    assert data == CONTENT


def test_14_rename(alluxio_fs: Any, place: AlluxioPlace, file: str, directory: str) -> None:
    assert alluxio_fs.rename(file, f"/bucket/{directory}/new") is True
    assert place.keys(directory) == [f"{directory}/new"]
    assert alluxio_fs.move(f"/bucket/{directory}/new", file) is True
    assert place.keys(directory) == [f"{directory}/file"]


def test_15_cp_file(alluxio_fs: Any, place: AlluxioPlace, file: str, directory: str) -> None:
    assert alluxio_fs.cp_file(f"/bucket/{directory}", f"/bucket/{directory}-copy", recursive=True) is True
    assert alluxio_fs.cp_file(file, f"/bucket/{directory}-copy/2") is True
    assert place.keys(f"{directory}-copy") == [f"{directory}-copy/2", f"{directory}-copy/file"]


def test_16_upload(alluxio_fs: Any, place: AlluxioPlace, directory: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(CONTENT)
    assert alluxio_fs.upload(f"{tmp_path}/local", f"/bucket/{directory}/uploaded") is True
    assert place.get(f"{directory}/uploaded") == CONTENT


def test_17_upload_data(alluxio_fs: Any, place: AlluxioPlace, directory: str) -> None:
    # upload data as byte stream
    assert alluxio_fs.upload_data(f"/bucket/{directory}/data", b"binary data") is True
    assert place.get(f"{directory}/data") == b"binary data"


def test_18_download(alluxio_fs: Any, file: str, tmp_path: Path) -> None:
    # download a large file from Alluxio
    assert alluxio_fs.download(f"{tmp_path}/local", file)
    assert (tmp_path / "local").read_bytes() == CONTENT


def test_19_download_data(alluxio_fs: Any, file: str) -> None:
    # download as byte stream
    byte_stream = alluxio_fs.download_data(file)
    data = byte_stream.read()
    assert data == CONTENT


def test_20_write(alluxio_fs: Any, place: AlluxioPlace, directory: str) -> None:
    assert alluxio_fs.write(f"/bucket/{directory}/file", b"data to write") is True
    assert place.get(f"{directory}/file") == b"data to write"


# -- other frameworks ---------------------------------------------------------------------------------


def test_pyarrow_dataset(alluxio_fs: Any, dataset: str) -> None:
    ds = require_module("pyarrow.dataset")

    # Pass the initialized Alluxio filesystem to Pyarrow and read the data set from the example file
    found = ds.dataset("s3://bucket/path/to/dataset/file1.parquet", filesystem=alluxio_fs)

    # Get a count of the number of records in the file
    assert found.count_rows() == ROWS

    # Display the schema derived from the file header record
    assert found.schema.names == ["id", "label"]

    # Display the first record; the document says take(0), which pyarrow itself refuses
    assert found.take([0]).to_pylist() == [{"id": 0, "label": "row 0"}]


def test_pyarrow_filesystem(alluxio_fs: Any, place: AlluxioPlace, dataset: str) -> None:
    fs = require_module("pyarrow.fs")

    # Create a python-based PyArrow filesystem using FsspecHandler
    py_fs = fs.PyFileSystem(fs.FSSpecHandler(alluxio_fs))

    # Read the data by using the Pyarrow filesystem interface
    with py_fs.open_input_file("s3://bucket/path/to/dataset/file1.parquet") as f:
        assert f.read() == place.get("path/to/dataset/file1.parquet")


def test_nothing_of_this_needed_the_store_itself(alluxio_fs: Any) -> None:
    assert alluxio_fs.get_error_metrics()["error_counts"] == {}
    assert alluxio_fs.client.metrics.reads["store"] == 0


RAY = """
import sys
import fsspec
import ray
from kara_cache.alluxio import AlluxioFileSystem

fsspec.register_implementation("alluxiofs", AlluxioFileSystem, clobber=True)
alluxio_fs = fsspec.filesystem(
    "alluxiofs",
    cluster_name="ai-alluxio",
    etcd_hosts="127.0.0.1",
    etcd_port=int(sys.argv[1]),
    target_protocol="s3",
)
ray.init(num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[2], object_store_memory=100 << 20)

# Pass the initialized Alluxio filesystem to Ray and read the dataset
ds = ray.data.read_parquet("s3://bucket/path/to/dataset/file1.parquet", filesystem=alluxio_fs)

# Get a count of the number of records in the single file
assert ds.count() == 1000, ds.count()

# Display the schema derived from the file header record
assert ds.schema().names == ["id", "label"], ds.schema()

# Display the header record
assert ds.take(1) == [{"id": 0, "label": "row 0"}]

# Display the first data record
assert len(ds.take(2)) == 2

# Read multiple files:
ds2 = ray.data.read_parquet("s3://bucket/path/to/dataset/", filesystem=alluxio_fs)

# Get a count of the number of records in the files
assert ds2.count() == 2000
ray.shutdown()
print("as documented")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray(place: AlluxioPlace, dataset: str, tmp_path: Path) -> None:
    """Ray and this package in an environment of their own."""
    ours = [need for need in requires("kara-cache") or () if ";" not in need]  # neither extras nor markers
    python = python_with("ray[data]==2.60.0", *ours)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTEST_RUN_MARK": os.environ["PYTEST_RUN_MARK"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "worker")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "200",  # its own 30 are too few on a busy machine
        "AWS_ACCESS_KEY_ID": "contract-key",
        "AWS_SECRET_ACCESS_KEY": "alluxio-documents",
    }
    run = [str(python), "-c", RAY, str(place.etcd_port), str(tmp_path / "ray")]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.stdout.strip().endswith("as documented"), done.stdout[-2000:] + done.stderr[-4000:]
