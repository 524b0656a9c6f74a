"""The examples of docs/storage.md, run as they stand there, in their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services import require_module

from kara_cache import KaraStorage
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.oss_server import OssServer
from kara_worker.testing.rude_http_server import RudeHttpServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "storage.md"
BLOCKS = re.findall(r"### ([^\n]+)\n|```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
OPENINGS = ("Absolute path", "Relative path", "Alibaba Cloud", "HTTP", "Through the cache")


def examples() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    heading = ""
    for title, code in BLOCKS:
        heading = title or heading
        if code:
            found.setdefault(heading, []).append(code)
    return found


def run(code: str, names: dict[str, Any], heading: str) -> None:
    exec(compile(code, f"{DOCUMENT}, {heading}", "exec"), names)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def oss() -> Iterator[OssServer]:
    require_module("oss2")
    with OssServer(buckets=["bucket"]) as server:
        yield server


Spelled = Callable[[str], str]


def of_disk(there: Path) -> Spelled:
    return lambda code: code.replace("/path/to/your", str(there))


def of_oss(oss: OssServer, more: str = "") -> Spelled:
    def spelled(code: str) -> str:
        code = code.replace("OSS_ENDPOINT", oss.host).replace("YOUR_BUCKET_NAME", "bucket/docs")
        code = code.replace("*** APP KEY ***", oss.credentials.key_id)
        return code.replace('"*** APP SECRET ***"', f"{oss.credentials.key_secret!r}, use_ssl=False{more}")

    return spelled


def test_the_openings_are_tested() -> None:
    assert tuple(examples())[: len(OPENINGS)] == OPENINGS


@pytest.mark.parametrize("heading", ["Absolute path", "Relative path", "Alibaba Cloud"])
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_all_examples_in_their_order(heading: str, there: Path, request: pytest.FixtureRequest) -> None:
    """The rest of the page on each kind of database that its openings make."""
    spelled = of_disk(there)
    if heading == "Alibaba Cloud":
        spelled = of_oss(request.getfixturevalue("oss"))
    names: dict[str, Any] = {"KaraStorage": KaraStorage, "__name__": "example"}
    for title, blocks in examples().items():
        if title in OPENINGS and title != heading:
            continue
        for code in blocks:
            run(spelled(code), names, title)
    names["storage"].close()


@pytest.mark.leaves_running("connections of the server")
def test_http(there: Path) -> None:
    with KaraStorage("file://made") as storage, storage.open("ns", "k", "w", 1) as dataset:
        dataset.write({"a": 1})
    with RudeHttpServer() as server:
        for path in (there / "made").rglob("*.*"):
            if path.is_file():
                server.put(f"prefix/{path.relative_to(there / 'made').as_posix()}", path.read_bytes())
        names: dict[str, Any] = {"KaraStorage": KaraStorage}
        (code,) = examples()["HTTP"]
        run(code.replace("https://path-to-your-dataset", server.url), names, "HTTP")
        with names["storage"] as storage, storage.open("ns", "k") as dataset:
            assert list(dataset) == [{"a": 1}]


@pytest.mark.leaves_running("connections to the workers")
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_through_the_cache(there: Path, oss: OssServer) -> None:
    keys = {"app_key": oss.credentials.key_id, "app_secret": oss.credentials.key_secret}
    options = {**keys, "use_ssl": False, "signature": "v1"}
    mounts = {"oss": {"url": f"oss://{oss.host}/bucket", "options": options}}
    with LocalCluster(1, mounts=mounts) as cluster:
        names: dict[str, Any] = {"KaraStorage": KaraStorage}
        (code,) = examples()["Through the cache"]
        run(of_oss(oss, f", kara={cluster.client_options!r}")(code), names, "Through the cache")
        with names["storage"] as storage:
            with storage.open("cached", "k", "w", 1) as dataset:
                dataset.write({"a": 1})
            with storage.open("cached", "k") as dataset:
                assert list(dataset) == [{"a": 1}]
