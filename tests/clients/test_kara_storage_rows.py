"""Row data sets and the published kara-storage 2.1.5: each reads what the other wrote, and appends to it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from published import python_with

from kara_cache import KaraStorage
from kara_cache.serialization import JSONSerializer, NoSerializer
from kara_cache.storage.rows.row_check import RowCheck
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(900),  # the first run installs the package
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
ROWS: list[Any] = [
    {"id": i, "text": "é雪\u2028\U0001f600\n" * (i % 40), "list": [i, None, -1.5]} for i in range(300)
]
PROGRAM = """
import json, sys
import kara_storage
url, options, action, key, version, more, rows = json.load(sys.stdin)
storage = kara_storage.KaraStorage(url, **options)
raw = kara_storage.serialization.NoSerializer()
def opened(mode, **kw):
    return storage.open_dataset("ns/a", key, mode, version=version, **more, **kw)
if action == "write":
    ds = opened("w")
    for row in rows:
        ds.write(row)
    ds.close()
    found = None
elif action == "write raw":
    ds = opened("w", serialization=raw)
    for row in rows:
        ds.write(row.encode("latin-1"))
    ds.close()
    found = None
elif action == "raw":
    ds = opened("r", serialization=raw)
    found = [row.decode("latin-1") for row in ds]
elif action == "read":
    ds = opened("r")
    found = [list(ds), [ds[i] for i in range(len(ds))], len(ds), ds.nbytes(), ds.seek(2, 2), ds.read()]
elif action == "json":
    import orjson
    found = []
    for row in rows:
        try:
            found.append(orjson.dumps(eval(row)).decode("latin-1"))
        except TypeError:
            found.append(None)
json.dump(found, sys.stdout)
sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def interpreter() -> Path:
    return python_with("kara-storage==2.1.5")


def published(python: Path, url: str, action: str, **given: Any) -> Any:
    order = [
        url,
        given.pop("options", {}),
        action,
        given.pop("key", "k"),
        given.pop("version", "1"),
        {k: v for k, v in given.items() if k != "rows"},
        given.get("rows"),
    ]
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", PROGRAM],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(storage: KaraStorage, rows: list[Any], key: str = "k", **options: Any) -> None:
    with storage.open("ns/a", key, "w", "1", **options) as dataset:
        for row in rows:
            dataset.write(row)


def both(python: Path, storage: KaraStorage, url: str, rows: list[Any], **more: Any) -> None:
    """All of it is there for the one and for the other."""
    found, by_index, count, size, position, last = published(python, url, "read", **more)
    assert found == by_index == rows
    assert (count, position, last) == (len(rows), len(rows) - 2, rows[-2])
    with storage.open("ns/a", "k") as dataset:
        assert list(dataset) == rows
        assert dataset.nbytes() == size
        assert dataset.verify().ok


@pytest.mark.parametrize("max_file_size", [100, 1001, 4096, 128 << 20])
def test_it_reads_ours(interpreter: Path, tmp_path: Path, max_file_size: int) -> None:
    """Rows and words of the index that go over the ends of segments, and segments that are full to a byte."""
    url = f"file://{tmp_path}"
    storage = KaraStorage(url)
    write(storage, ROWS[:200], max_file_size=max_file_size)
    write(storage, ROWS[200:], max_file_size=max_file_size)
    both(interpreter, storage, url, ROWS)
    assert published(interpreter, url, "read", version="latest")[2] == len(ROWS)


@pytest.mark.parametrize("max_file_size", [100, 1001, 128 << 20])
def test_we_read_its(interpreter: Path, tmp_path: Path, max_file_size: int) -> None:
    url = f"file://{tmp_path}"
    storage = KaraStorage(url)
    published(interpreter, url, "write", rows=ROWS, max_file_size=max_file_size)
    both(interpreter, storage, url, ROWS)
    assert storage.get_row_meta("ns/a", "k") == {"latest": "1", "versions": ["1"], "api": 2}


@pytest.mark.parametrize("max_file_size", [100, 1001, 128 << 20])
def test_taking_turns(interpreter: Path, tmp_path: Path, max_file_size: int) -> None:
    """Also where its last segment is longer than ours may be."""
    url = f"file://{tmp_path}"
    storage = KaraStorage(url)
    published(interpreter, url, "write", rows=ROWS[:100], max_file_size=2000)
    write(storage, ROWS[100:150], max_file_size=max_file_size)
    both(interpreter, storage, url, ROWS[:150])
    published(interpreter, url, "write", rows=ROWS[150:220], max_file_size=max(2000, max_file_size))
    both(interpreter, storage, url, ROWS[:220])
    write(storage, ROWS[220:], max_file_size=max_file_size)
    both(interpreter, storage, url, ROWS)
    with storage.open("ns/a", "k") as dataset:
        assert dataset.verify() == RowCheck(300, 130, ())


def test_raw_and_empty_rows(interpreter: Path, tmp_path: Path) -> None:
    """One at the very end it cannot read by its index (a defect of its own), but in order."""
    url = f"file://{tmp_path}"
    rows = ["", "a", "", "", "\xff\0\n", ""]
    raw = {"serialization": NoSerializer()}
    storage = KaraStorage(url)
    write(storage, [row.encode("latin-1") for row in rows], **raw, max_file_size=2)
    assert published(interpreter, url, "raw") == rows
    published(interpreter, url, "write raw", rows=rows)
    with storage.open("ns/a", "k", **raw) as dataset:
        assert list(dataset) == [dataset[i] for i in range(12)] == [row.encode("latin-1") for row in rows * 2]


def test_its_empty_version_and_ours(interpreter: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    storage = KaraStorage(url)
    published(interpreter, url, "write", rows=[], key="theirs")
    with storage.open("ns/a", "theirs") as dataset:
        assert (len(dataset), list(dataset), dataset.read()) == (0, [], None)
    write(storage, [], key="ours")
    assert published(interpreter, url, "raw", key="ours") == []


def test_segments_are_the_same_files(interpreter: Path, tmp_path: Path) -> None:
    """Beside the checksums and the lock there is no difference at all."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(KaraStorage(f"file://{ours}"), ROWS, max_file_size=5000)
    published(interpreter, f"file://{theirs}", "write", rows=ROWS, max_file_size=5000)

    def content(root: Path) -> dict[str, bytes]:
        return {
            name: path.read_bytes()
            for path in root.rglob("*")
            if path.is_file() and not (name := path.relative_to(root).as_posix()).endswith(".lock")
        }

    found = content(ours)
    assert {name: data for name, data in found.items() if "/sums/" not in name} == content(theirs)
    assert sum("/sums/" in name for name in found) == 1


VALUES = [
    "1.0, 1e16, 1e15, 1e22, 1e-7, 0.00001, 5e-324, 1.7976931348623157e308, -0.0, 0.1 + 0.2",
    "float('nan'), float('inf')",
    "2**64 - 1, -2**63, 0, -1",
    "2**64",
    "-2**63 - 1",
    "[1, 2**64]",
    "{'a': [1, {'b': 2**64}]}",
    "'\\x00\\x1f\\x7f\"\\\\/\\u2028 é \\U0001f600'",
    "'\\ud800'",
    "(1, (2, [3]))",
    "{'b': 1, 'a': {'z': None, 'y': True}}",
    "{1: 2}",
    "{None: 2}",
    "b'x'",
    "[b'x']",
    "{'a': bytearray(b'x')}",
    "{1, 2}",
    "{'a': frozenset()}",
    "object()",
    "1j",
    "type('S', (str,), {})('s'), type('I', (int,), {})(5), type('D', (dict,), {})(a=1)",
    "type('L', (list,), {})([1, 2])",
    "type('F', (float,), {})(1.5)",
    "__import__('collections').OrderedDict(b=1, a=2)",
    "__import__('collections').namedtuple('N', 'a')(1)",
    "__import__('decimal').Decimal('1.5')",
    "memoryview(b'x')",
    "print",
]


def test_json_is_its_json(interpreter: Path, tmp_path: Path) -> None:
    """The same bytes, or refused by both.

    But for the sign of an exponent: orjson 3.13 writes 1e+16, earlier ones and msgspec 1e16.
    """
    theirs = published(interpreter, f"file://{tmp_path}", "json", rows=VALUES)
    for expression, wanted in zip(VALUES, theirs, strict=True):
        try:
            found: str | None = JSONSerializer().serialize(eval(expression)).decode("latin-1")
        except TypeError:
            found = None
        assert found == (wanted and wanted.replace("e+", "e")), expression


def test_over_http(interpreter: Path, tmp_path: Path) -> None:
    write(KaraStorage(f"file://{tmp_path}/db"), ROWS, max_file_size=5000)
    with RudeHttpServer() as server:
        for path in (tmp_path / "db").rglob("*.*"):
            if path.is_file():
                server.put(f"db/{path.relative_to(tmp_path / 'db').as_posix()}", path.read_bytes())
        assert published(interpreter, f"{server.url}/db", "read")[0] == ROWS


def test_over_oss(tmp_path: Path) -> None:
    """Segments of any size, one for each flush. It cannot append to them: they are no appendable objects."""
    interpreter = python_with("kara-storage==2.1.5", "oss2==2.19.1")
    with OssServer(buckets=["bucket"]) as server:
        url = f"oss://{server.host}/bucket/pre/fix"
        keys = server.credentials
        options = {"app_key": keys.key_id, "app_secret": keys.key_secret, "use_ssl": False}
        with KaraStorage(url, **options) as storage:
            for at in range(0, 200, 50):
                write(storage, ROWS[at : at + 50])
            both(interpreter, storage, url, ROWS[:200], options=options)
            published(interpreter, url, "write", rows=ROWS, options=options, key="theirs")
            write(storage, ROWS[:50], key="theirs")
            with storage.open("ns/a", "theirs") as dataset:
                assert list(dataset) == ROWS + ROWS[:50]
            assert published(interpreter, url, "read", options=options, key="theirs")[0] == ROWS + ROWS[:50]
