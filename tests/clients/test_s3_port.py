"""S3 clients, as they are, through the data port of two workers that ask everybody for a signature.

Whatever worker is asked, a file is kept once: the other one fetches from there, with the cluster's secret.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import published
import pytest
import services

from kara_cache.token import VERBS, Claims, mint
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer

boto3 = services.require_module("boto3")
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402

pytestmark = [pytest.mark.clients, pytest.mark.etcd]

MIB = 1 << 20
WRITER = ("writer", "secret of the writer")
READER = ("reader", "secret of the reader")
# oss2 aside, botocore up to 1.40 signs with datetime.utcnow, deprecated since Python 3.12
_OLD_CLOCK = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
pytestmark.append(_OLD_CLOCK)
FILES = {
    "a b+c&d=e%20é中.bin": 10_000,
    "big": 20 * MIB + 7,
    "dir/one": 1,
    "dir/sub/two": 5000,
    "empty": 0,
    "rows.csv": 0,  # replaced below
}


@dataclass(frozen=True)
class Buckets:
    cluster: LocalCluster
    disk: Path
    endpoints: list[str]

    def client(self, number: int = 0, keys: tuple[str, str] = WRITER, **config: Any) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoints[number],
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
            region_name="us-east-1",
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 1},
                **config,
            ),
        )

    def fetched(self) -> float:
        return self.cluster.total("kara_worker_store_read_bytes_total")


def content(name: str) -> bytes:
    if name == "rows.csv":
        return b"id,square\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(10_000))
    return random.Random(name).randbytes(FILES[name])


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    services.require("etcd")
    root = tmp_path_factory.mktemp("s3")
    disk, secret, keys = root / "disk", root / "secret", root / "keys"
    for place in (disk, root / "fixed"):
        for name in FILES:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content(name))
    secret.write_text("s" * 32)
    keys.write_text(f"{':'.join(WRITER)}\n{':'.join(READER)}:read\n")
    with (
        EtcdServer() as etcd,
        LocalCluster(
            2,
            mounts={
                "data": {"url": f"file://{disk}", "freshness": "max_age=1h"},
                "fixed": {"url": f"file://{root}/fixed", "read_only": True},
            },
            etcd=etcd,
            secret=f"file:{secret}",
            alluxio_data_port=0,
            alluxio_s3_keys=f"file:{keys}",
        ) as cluster,
    ):
        wait_for_neighbours(cluster)
        ports = [worker.ready["alluxio_ports"][2] for worker in cluster.workers]
        yield Buckets(cluster, disk, [f"http://127.0.0.1:{port}" for port in ports])


def wait_for_neighbours(cluster: LocalCluster) -> None:
    """A worker that has not seen the others yet keeps what they own, and that would be a second copy."""
    deadline, count = time.monotonic() + 30, len(cluster.workers)
    while any(w.metrics()["kara_worker_alluxio_known_workers"] < count for w in cluster.workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


# -- boto3: reading ---------------------------------------------------------------------------------------


def test_objects_from_any_worker_with_one_copy(buckets: Buckets) -> None:
    before = buckets.fetched()
    for _ in range(2):
        for number in range(2):
            s3 = buckets.client(number)
            for name in FILES:
                answer = s3.get_object(Bucket="data", Key=name)
                assert answer["Body"].read() == content(name)
                assert answer["ContentLength"] == len(content(name))
                head = s3.head_object(Bucket="data", Key=name)
                assert (head["ContentLength"], head["ETag"]) == (len(content(name)), answer["ETag"])
    assert buckets.fetched() - before == sum(len(content(name)) for name in FILES)


def test_ranges_are_slices(buckets: Buckets) -> None:
    data, chance = content("big"), random.Random(5)
    clients = [buckets.client(0), buckets.client(1)]
    for _ in range(60):
        start = chance.randrange(len(data))
        stop = min(len(data), start + chance.choice((1, 1000, MIB, 9 * MIB)))
        answer = chance.choice(clients).get_object(
            Bucket="data", Key="big", Range=f"bytes={start}-{stop - 1}"
        )
        assert answer["Body"].read() == data[start:stop]
        assert answer["ContentRange"] == f"bytes {start}-{stop - 1}/{len(data)}"
    (s3, _) = clients
    assert s3.get_object(Bucket="data", Key="big", Range="bytes=-5")["Body"].read() == data[-5:]
    assert code_of(s3.get_object, Bucket="data", Key="big", Range=f"bytes={len(data)}-") == "InvalidRange"
    assert s3.get_object(Bucket="data", Key="big", PartNumber=1)["Body"].read() == data


def test_conditions(buckets: Buckets) -> None:
    s3 = buckets.client()
    tag = s3.head_object(Bucket="data", Key="big")["ETag"]
    assert s3.get_object(Bucket="data", Key="big", IfMatch=tag)["ContentLength"] == FILES["big"]
    assert code_of(s3.get_object, Bucket="data", Key="big", IfMatch='"other"') == "PreconditionFailed"
    assert code_of(s3.get_object, Bucket="data", Key="big", IfNoneMatch=tag) == "304"


def test_listings(buckets: Buckets) -> None:
    s3 = buckets.client()
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["data", "fixed"]
    assert s3.head_bucket(Bucket="data")["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert s3.get_bucket_location(Bucket="data")["LocationConstraint"] is None
    names = sorted(FILES)
    for version in ("list_objects", "list_objects_v2"):
        for size in (1, 2, 1000):
            pages = s3.get_paginator(version).paginate(Bucket="fixed", PaginationConfig={"PageSize": size})
            assert [each["Key"] for page in pages for each in page["Contents"]] == names
        call = getattr(s3, version)
        flat = call(Bucket="fixed", Delimiter="/")
        assert [each["Prefix"] for each in flat["CommonPrefixes"]] == ["dir/"]
        assert [each["Key"] for each in flat["Contents"]] == [name for name in names if "/" not in name]
        assert [each["Size"] for each in flat["Contents"]] == [
            len(content(name)) for name in names if "/" not in name
        ]
        below = call(Bucket="fixed", Delimiter="/", Prefix="dir/")
        assert ([p["Prefix"] for p in below["CommonPrefixes"]], [c["Key"] for c in below["Contents"]]) == (
            ["dir/sub/"],
            ["dir/one"],
        )
        assert [each["Key"] for each in call(Bucket="fixed", Prefix="ro")["Contents"]] == ["rows.csv"]
        assert "Contents" not in call(Bucket="fixed", Prefix="dir/one/")
        assert "Contents" not in call(Bucket="fixed", Prefix="none/such")
    after = s3.list_objects_v2(Bucket="fixed", StartAfter="dir/one")
    assert [each["Key"] for each in after["Contents"]] == [name for name in names if name > "dir/one"]
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket="fixed", Delimiter="/", PaginationConfig={"PageSize": 1}
    )
    entries = [each for page in pages for each in page.get("Contents", []) + page.get("CommonPrefixes", [])]
    found = [entry.get("Key", entry.get("Prefix")) for entry in entries]
    assert found == sorted({name if "/" not in name else "dir/" for name in names})


# -- boto3: writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ChecksumAlgorithm": "SHA256"},
        {"ChecksumAlgorithm": "SHA1"},
        {"ContentMD5": b64encode(md5(b"z" * 300_000).digest()).decode()},
    ],
)
@pytest.mark.parametrize("checksums", ["when_supported", "when_required"])
def test_put_and_read_back(buckets: Buckets, arguments: dict[str, str], checksums: str) -> None:
    data = b"z" * 300_000
    s3 = buckets.client(request_checksum_calculation=checksums)
    put = s3.put_object(Bucket="data", Key="made/by put+é", Body=data, **arguments)
    assert (buckets.disk / "made" / "by put+é").read_bytes() == data
    answer = s3.get_object(Bucket="data", Key="made/by put+é")
    assert (answer["Body"].read(), answer["ETag"]) == (data, put["ETag"])
    assert s3.delete_object(Bucket="data", Key="made/by put+é")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert code_of(s3.get_object, Bucket="data", Key="made/by put+é") == "NoSuchKey"


def test_uploads_in_parts(buckets: Buckets) -> None:
    s3, data = buckets.client(), random.Random(3).randbytes(21 * MIB)
    s3.upload_fileobj(io.BytesIO(data), "data", "made/in parts")  # 8 MiB each, ten threads
    assert (buckets.disk / "made" / "in parts").read_bytes() == data
    back = io.BytesIO()
    s3.download_fileobj("data", "made/in parts", back)
    assert back.getvalue() == data
    upload = s3.create_multipart_upload(Bucket="data", Key="made/aborted")["UploadId"]
    part = s3.upload_part(Bucket="data", Key="made/aborted", UploadId=upload, PartNumber=2, Body=b"two")
    (listed,) = s3.list_parts(Bucket="data", Key="made/aborted", UploadId=upload)["Parts"]
    assert (listed["PartNumber"], listed["Size"], listed["ETag"]) == (2, 3, part["ETag"])
    assert [each["Key"] for each in s3.list_multipart_uploads(Bucket="data")["Uploads"]] == ["made/aborted"]
    wrong = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    complete = {"Bucket": "data", "Key": "made/aborted", "UploadId": upload}
    assert code_of(s3.complete_multipart_upload, **complete, MultipartUpload=wrong) == "InvalidPart"
    s3.abort_multipart_upload(**complete)
    assert code_of(s3.list_parts, **complete) == "NoSuchUpload"
    assert not (buckets.disk / "made" / "aborted").exists()


def test_copies_and_many_deletions(buckets: Buckets) -> None:
    s3 = buckets.client()
    s3.copy_object(
        Bucket="data", Key="made/copy", CopySource={"Bucket": "fixed", "Key": "a b+c&d=e%20é中.bin"}
    )
    assert (buckets.disk / "made" / "copy").read_bytes() == content("a b+c&d=e%20é中.bin")
    s3.put_object(Bucket="data", Key="made/folder/", Body=b"")
    assert (buckets.disk / "made" / "folder").is_dir()
    keys = [{"Key": key} for key in ("made/copy", "made/folder/", "made/none", "made/none/")]
    answer = s3.delete_objects(Bucket="data", Delete={"Objects": keys})
    assert [each["Key"] for each in answer["Deleted"]] == [each["Key"] for each in keys]
    assert not (buckets.disk / "made" / "copy").exists()
    s3.put_object(Bucket="data", Key="made/kept/file", Body=b"x")
    s3.delete_object(Bucket="data", Key="made/kept")  # a directory is no object
    s3.delete_object(Bucket="data", Key="made/kept/")  # nor does one go with what is in it
    assert (buckets.disk / "made" / "kept" / "file").read_bytes() == b"x"


def test_a_changed_file_is_read_as_it_is_now(buckets: Buckets) -> None:
    """Facts are trusted for an hour here; that a version is gone from the store is found out."""
    s3 = buckets.client()
    for turn in range(3):
        data = random.Random(turn).randbytes(2 * MIB + turn)
        (buckets.disk / "changing").write_bytes(data)
        for worker in buckets.cluster.workers:
            urllib.request.urlopen(free_request(buckets, worker.port), timeout=30).close()
        assert s3.get_object(Bucket="data", Key="changing")["Body"].read() == data


def free_request(buckets: Buckets, port: int) -> urllib.request.Request:
    token = mint(b"s" * 32, Claims(VERBS, "/", int(time.time()) + 60, "test"))
    url = f"http://127.0.0.1:{port}/kara/v1/free?path=/data/changing"
    return urllib.request.Request(url, method="POST", headers={"Authorization": f"Bearer {token}"})


def test_the_example_of_the_document(buckets: Buckets) -> None:
    text = (Path(__file__).parents[2] / "docs" / "alluxio.md").read_text(encoding="utf-8")
    (block,) = [
        each for each in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S) if "boto3" in each
    ]
    for place, worn in (("train", "fixed"), ("part-0.parquet", "rows.csv")):
        block = block.replace(place, worn)
    names = {"boto3": boto3, "Config": Config, "ENDPOINT": buckets.endpoints[0]}
    names |= {"ACCESS": READER[0], "SECRET": READER[1]}
    *lines, last = block.strip().splitlines()
    exec("\n".join(lines), names)
    assert eval(last, names) == content("rows.csv")


# -- who may ----------------------------------------------------------------------------------------------


def test_keys(buckets: Buckets) -> None:
    reader = buckets.client(keys=READER)
    assert reader.get_object(Bucket="data", Key="dir/one")["Body"].read() == content("dir/one")
    put = {"Bucket": "data", "Key": "made/no", "Body": b"x"}
    assert code_of(reader.put_object, **put) == "AccessDenied"
    assert code_of(reader.delete_object, Bucket="data", Key="dir/one") == "AccessDenied"
    assert code_of(reader.create_multipart_upload, Bucket="data", Key="made/no") == "AccessDenied"
    wrong, stranger = (
        buckets.client(keys=("writer", "wrong secret")),
        buckets.client(keys=("who", "secret secret")),
    )
    assert code_of(wrong.list_buckets) == "SignatureDoesNotMatch"
    assert code_of(stranger.get_object, Bucket="data", Key="dir/one") == "InvalidAccessKeyId"
    assert code_of(buckets.client().put_object, **put | {"Bucket": "fixed"}) == "AccessDenied"
    assert code_of(buckets.client().get_object, Bucket="elsewhere", Key="x") == "NoSuchBucket"
    assert not (buckets.disk / "made" / "no").exists()


def test_nothing_without_a_signature(buckets: Buckets) -> None:
    for path in ("/", "/data", "/data/dir/one", "/data/..%2f..%2fetc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(buckets.endpoints[0] + path, timeout=30)
    with pytest.raises(ClientError):
        buckets.client().get_object(Bucket="data", Key="../../../etc/passwd")


def test_presigned_urls(buckets: Buckets) -> None:
    s3 = buckets.client()
    key = {"Bucket": "data", "Key": "a b+c&d=e%20é中.bin"}
    url = s3.generate_presigned_url("get_object", Params=key, ExpiresIn=60)
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == content(key["Key"])
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url.replace("e%2520", "f%2520"), timeout=30)
    put = s3.generate_presigned_url("put_object", Params={"Bucket": "data", "Key": "made/presigned"})
    with urllib.request.urlopen(urllib.request.Request(put, data=b"hi", method="PUT"), timeout=30) as answer:
        assert answer.status == 200
    assert (buckets.disk / "made" / "presigned").read_bytes() == b"hi"


def test_content_that_is_not_what_was_signed_is_not_written(buckets: Buckets) -> None:
    s3 = buckets.client(request_checksum_calculation="when_required")

    def spoil(request: Any, **_: Any) -> None:
        request.body = b"other text"

    s3.meta.events.register("before-send.s3.PutObject", spoil)
    put = {"Bucket": "data", "Key": "made/spoiled", "Body": b"a text of."}
    assert code_of(s3.put_object, **put) in ("XAmzContentSHA256Mismatch", "BadDigest")
    assert not (buckets.disk / "made" / "spoiled").exists()


# -- other clients, each in an environment of its own -------------------------------------------------------


def run(python: Path, program: str, buckets: Buckets, **environment: str) -> Any:
    done = subprocess.run(
        [python, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "AWS_ACCESS_KEY_ID": READER[0],
            "AWS_SECRET_ACCESS_KEY": READER[1],
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "ENDPOINT": buckets.endpoints[1],
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected() -> dict[str, str]:
    return {name: sha256(content(name)).hexdigest() for name in FILES}


S3FS = """
import fsspec, hashlib, json, os
fs = fsspec.filesystem("s3", client_kwargs={"endpoint_url": os.environ["ENDPOINT"]},
                       config_kwargs={"s3": {"addressing_style": "path"}})
names = [path.partition("/")[2] for path in fs.find("fixed")]
found = {name: hashlib.sha256(fs.cat_file(f"fixed/{name}")).hexdigest() for name in names}
with fs.open("fixed/big", block_size=1 << 20) as file:
    file.seek(7_000_000)
    piece = hashlib.sha256(file.read(3_000_000)).hexdigest()
print(json.dumps([found, piece, sorted(fs.ls("fixed/dir")), fs.exists("fixed/none"), fs.isdir("fixed/dir")]))
"""


def test_s3fs(buckets: Buckets) -> None:
    python = published.python_with("s3fs==2026.9.0")
    found, piece, listing, exists, is_dir = run(python, S3FS, buckets)
    assert found == expected()
    assert piece == sha256(content("big")[7_000_000:10_000_000]).hexdigest()
    assert (listing, exists, is_dir) == (["fixed/dir/one", "fixed/dir/sub"], False, True)


TORCH = """
import hashlib, json, os
from s3torchconnector import S3ClientConfig, S3IterableDataset, S3MapDataset
config = S3ClientConfig(force_path_style=True)
kinds = []
for kind in (S3MapDataset, S3IterableDataset):
    dataset = kind.from_prefix("s3://fixed/", region="us-east-1", endpoint=os.environ["ENDPOINT"],
                               s3client_config=config)
    kinds.append({item.key: hashlib.sha256(item.read()).hexdigest() for item in dataset})
print(json.dumps(kinds))
"""


def test_s3torchconnector(buckets: Buckets) -> None:
    python = published.python_with("s3torchconnector==1.5.0", "torch==2.13.0", "numpy<2.3")
    assert run(python, TORCH, buckets) == [expected(), expected()]


CHECKPOINT = """
import hashlib, io, json, os, random
from s3torchconnector import S3Checkpoint, S3ClientConfig
checkpoint = S3Checkpoint(region="us-east-1", endpoint=os.environ["ENDPOINT"],
                          s3client_config=S3ClientConfig(force_path_style=True))
data = random.Random(8).randbytes(19 << 20)
with checkpoint.writer("s3://data/made/checkpoint") as writer:
    writer.write(data)
with checkpoint.reader("s3://data/made/checkpoint") as reader:
    print(json.dumps(reader.read() == data))
"""


@pytest.mark.slow
def test_a_checkpoint_of_s3torchconnector(buckets: Buckets) -> None:
    """Written by the AWS runtime: parts as it frames and checks them."""
    python = published.python_with("s3torchconnector==1.5.0", "torch==2.13.0", "numpy<2.3")
    keys = {"AWS_ACCESS_KEY_ID": WRITER[0], "AWS_SECRET_ACCESS_KEY": WRITER[1]}
    assert run(python, CHECKPOINT, buckets, **keys) is True
    assert (buckets.disk / "made" / "checkpoint").read_bytes() == random.Random(8).randbytes(19 << 20)


OBSTORE = """
import hashlib, json, os
import obstore
from obstore.store import S3Store
store = S3Store("fixed", endpoint=os.environ["ENDPOINT"], region="us-east-1", allow_http=True,
                virtual_hosted_style_request=False)
names = [meta["path"] for page in store.list() for meta in page]
found = {name: hashlib.sha256(bytes(store.get(name).bytes())).hexdigest() for name in names}
parts = store.get_ranges("big", starts=[5, 9_000_000], lengths=[10, 4_000_000])
print(json.dumps([found, [hashlib.sha256(bytes(part)).hexdigest() for part in parts]]))
"""


@pytest.mark.slow
def test_obstore(buckets: Buckets) -> None:
    """The object_store crate, which Polars, DataFusion and Delta readers use."""
    found, parts = run(published.python_with("obstore==0.12.1"), OBSTORE, buckets)
    assert found == expected()
    data = content("big")
    assert parts == [sha256(data[5:15]).hexdigest(), sha256(data[9_000_000:13_000_000]).hexdigest()]


DUCKDB = """
import duckdb, json, os
import duckdb_ext
connection = duckdb.connect()
connection.execute("SET extension_directory = ?", (duckdb_ext.__path__[0] + "/extensions",))
connection.execute("LOAD httpfs")
connection.execute(f'''CREATE SECRET (TYPE s3, KEY_ID '{os.environ["AWS_ACCESS_KEY_ID"]}',
    SECRET '{os.environ["AWS_SECRET_ACCESS_KEY"]}', REGION 'us-east-1', URL_STYLE 'path', USE_SSL false,
    ENDPOINT '{os.environ["ENDPOINT"].removeprefix("http://")}')''')
one = connection.execute("SELECT count(*), sum(square) FROM 's3://fixed/rows.csv'").fetchone()
listed = connection.execute("SELECT file FROM glob('s3://fixed/dir/**') ORDER BY 1").fetchall()
print(json.dumps([[int(value) for value in one], [row[0] for row in listed]]))
"""


def test_duckdb_httpfs(buckets: Buckets) -> None:
    python = published.python_with("duckdb==1.4.4", "duckdb-ext-httpfs==1.4.4.20260205")
    total, listed = run(python, DUCKDB, buckets)
    assert total == [10_000, sum(n * n for n in range(10_000))]
    assert listed == ["s3://fixed/dir/one", "s3://fixed/dir/sub/two"]
