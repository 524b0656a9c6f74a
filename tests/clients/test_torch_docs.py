"""The examples of docs/pytorch.md, run one after the other as they stand there, on a real OSS server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from services import require_module

torch = require_module("torch")

import kara_cache  # noqa: E402
from kara_cache.sampling import RowOrder, order_of_2  # noqa: E402
from kara_worker.testing.cluster import LocalCluster  # noqa: E402
from kara_worker.testing.oss_server import OssServer  # noqa: E402

pytestmark = [
    pytest.mark.clients,
    pytest.mark.oss,
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
DOCUMENT = Path(__file__).parents[2] / "docs" / "pytorch.md"
PLACE = "kara::oss://endpoint/bucket/prefix"
ROWS = 500


def fill(url: str, pictures: Path) -> None:
    storage = kara_cache.KaraStorage(url)
    with storage.open("namespace", "train", "w", version="1") as rows:
        for number in range(ROWS):
            rows.write({"number": number})
    for number in range(40):
        (pictures / str(number % 4)).mkdir(parents=True, exist_ok=True)
        (pictures / str(number % 4) / f"{number}.pgm").write_bytes(bytes([number]) * 100)
    storage.save_directory("namespace", "pictures", pictures, progress_bar=False)
    store = storage.location.store
    for path in pictures.rglob("*.pgm"):
        store.write(f"images/{path.relative_to(pictures)}", path.read_bytes())
    storage.location.close()


def order(epoch: int = 0) -> list[int]:
    return RowOrder(ROWS, shuffle=True, seed=7, epoch=epoch).rows_at(range(ROWS))


def test_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_module("oss2")
    with OssServer(buckets=["bucket"]) as server:
        secrets = {"TEST_KEY_ID": server.credentials.key_id, "TEST_KEY_SECRET": server.credentials.key_secret}
        options = {
            "access_key_id": "env:TEST_KEY_ID",
            "access_key_secret": "env:TEST_KEY_SECRET",
            "region": server.region,
            "use_ssl": False,
        }
        mount = {"url": f"oss://{server.host}/bucket", "options": options}
        with LocalCluster(1, mounts={"bucket": mount}, environment=secrets) as cluster:
            for key, value in cluster.client_options.items():
                monkeypatch.setenv(f"KARA_{key.upper()}", str(value))
            url = f"kara::oss://{server.host}/bucket/prefix"
            fill(url, tmp_path)
            names = run(url)
            check(names)
            for name in ("storage", "images", "rows"):
                getattr(names[name], "location", names[name]).close()


def run(url: str) -> dict[str, Any]:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    for number, example in enumerate(examples, 1):
        exec(compile(example.replace(PLACE, url), f"{DOCUMENT}, example {number}", "exec"), names)
    assert len(examples) == 8
    return names


def check(names: dict[str, Any]) -> None:
    assert [int(number) for number in names["seen"]] == order() + order(1)
    assert len(names["state"]) < 200
    assert [int(number) for number in names["used"]] == order()
    assert names["steps"] == [11, 16]
    parts = [[row["number"] for row in part] for part in names["parts"]]
    assert parts == [order()[rank::3] for rank in range(3)]
    assert len(names["drawn"]) == 64
    assert names["mapped"] == order()
    assert names["labels"] == set("0123")
    assert names["counted"] == 40
    assert names["first_picture"] == bytes([0]) * 100
    assert names["published"] == list(order_of_2(ROWS, seed=3, epoch=1, buffer_size=50))
