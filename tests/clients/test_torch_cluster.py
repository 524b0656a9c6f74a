"""Rows and files of a real OSS server, through real workers, in loaders and in a training run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from services import free_port, require_module

torch = require_module("torch")

import kara_cache  # noqa: E402
from kara_cache.sampling import RowOrder  # noqa: E402
from kara_cache.torch import (  # noqa: E402
    ResumableLoader,
    RowMap,
    RowStream,
    make_torch_dataset,
)
from kara_worker.testing.cluster import LocalCluster  # noqa: E402
from kara_worker.testing.oss_server import OssServer  # noqa: E402

pytestmark = [
    pytest.mark.clients,
    pytest.mark.oss,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*suggested max number of worker:UserWarning"),
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_digits.py"
ROWS = 700
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """A directory of a bucket, chained through the cluster, and what a client needs to find that."""

    server: OssServer
    cluster: LocalCluster
    directory: str = "set"

    @property
    def url(self) -> str:
        return f"kara::oss://{self.server.host}/data/{self.directory}"

    @property
    def options(self) -> dict[str, Any]:
        return {"kara": self.cluster.client_options}

    @property
    def environment(self) -> dict[str, str]:
        found = self.cluster.client_options
        return {f"KARA_{key.upper()}": str(value) for key, value in found.items()}

    def gets(self) -> int:
        return len(self.server.requests.data_gets())


def text(number: int) -> str:
    return f"row {number} " + "x" * (number * 37 % 500)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Without credentials in clients: the workers have them."""
    require_module("oss2")
    with OssServer(buckets=["data"]) as server:
        given = {
            "access_key_id": "env:TEST_KEY_ID",
            "access_key_secret": "env:TEST_KEY_SECRET",
            "region": server.region,
            "use_ssl": False,
        }
        secrets = {"TEST_KEY_ID": server.credentials.key_id, "TEST_KEY_SECRET": server.credentials.key_secret}
        mount = {"url": f"oss://{server.host}/data", "options": given}
        with LocalCluster(2, mounts={"data": mount}, environment=secrets) as cluster:
            found = Place(server, cluster)
            storage = kara_cache.KaraStorage(found.url, **found.options)
            with storage.open("test", "rows", "w", version="1", max_file_size=50_000) as rows:
                for number in range(ROWS):
                    rows.write(text(number))
            yield found


@pytest.fixture
def rows(place: Place) -> Iterator[Any]:
    with kara_cache.KaraStorage(place.url, **place.options).open("test", "rows") as found:
        yield found


def as_it_is(batch: Any) -> Any:
    return batch


def wanted(epoch: int = 0) -> list[str]:
    return [text(row) for row in RowOrder(ROWS, shuffle=True, seed=3, epoch=epoch).rows_at(range(ROWS))]


def flat(batches: Any) -> list[Any]:
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(each, marks=SLOW) for each in ("spawn", "forkserver"))]
)
def test_epochs_of_rows(place: Place, rows: Any, method: str) -> None:
    """The parent has read, so that what workers inherit is in use."""
    assert rows[5] == text(5)
    loader = ResumableLoader(
        RowStream(rows, batch_size=16, seed=3),
        num_workers=2,
        collate_fn=as_it_is,
        multiprocessing_context=method,
        timeout=300,
    )
    assert flat(loader) == wanted()
    before = place.gets()
    loader.set_epoch(1)
    assert flat(loader) == wanted(1)
    assert place.gets() == before, "the second epoch came from the cache"


def test_going_on(rows: Any) -> None:
    first = ResumableLoader(RowStream(rows, batch_size=16, seed=3), num_workers=2, collate_fn=as_it_is)
    got = flat(islice(first, 9))
    second = ResumableLoader(RowStream(rows, batch_size=5), num_workers=1, collate_fn=as_it_is)
    second.load_state_dict(first.state_dict())
    assert got + flat(second) == wanted()


def test_maps_and_the_published_order(rows: Any) -> None:
    loader = torch.utils.data.DataLoader
    assert flat(loader(RowMap(rows), batch_size=64, collate_fn=as_it_is)) == [text(n) for n in range(ROWS)]
    data = make_torch_dataset(rows, shuffle=True, seed=1, buffer_size=50)
    assert sorted(data) == sorted(text(number) for number in range(ROWS))
    data.batch_size = 16
    assert flat(loader(data, batch_size=16, num_workers=2, collate_fn=as_it_is)) == list(data)
    window = rows.slice(100, 50)
    assert list(RowStream(window, shuffle=False)) == [text(number) for number in range(100, 150)]


LEFT_OPEN = """
import sys
import kara_cache
from kara_cache.torch import ResumableLoader, RowStream
def as_it_is(batch): return batch
if __name__ == "__main__":
    url, method = sys.argv[1:]
    rows = kara_cache.KaraStorage(url).open("test", "rows")
    stream = RowStream(rows, batch_size=4, prefetch_bytes="20KiB")
    alone = iter(stream)
    next(alone)
    loader = ResumableLoader(
        stream, num_workers=2, collate_fn=as_it_is, persistent_workers=True, multiprocessing_context=method
    )
    batches = iter(loader)
    next(batches)
    print("end", flush=True)
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=SLOW)])
def test_a_process_ends_with_everything_left_open(place: Place, tmp_path: Path, method: str) -> None:
    script = tmp_path / "left_open.py"
    script.write_text(LEFT_OPEN)
    done = subprocess.run(
        [sys.executable, script, place.url, method],
        env={**os.environ, **place.environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


# -- a training run ----------------------------------------------------------------------------------------


@contextmanager
def ranks(place: Place, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two of them, each the first of its own session; whatever is left of those is killed."""
    found: list[subprocess.Popen[str]] = []
    port = str(free_port())
    for rank in range(2):
        environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        found.append(
            subprocess.Popen(
                [sys.executable, EXAMPLE, "train", "--url", place.url, *arguments],
                env={**os.environ, **place.environment, **environment},
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    try:
        yield found
    finally:
        kill(found)
        for process in found:
            assert process.stdout is not None
            process.stdout.close()


def kill(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait(60)


def losses(lines: list[str]) -> dict[int, tuple[str, str]]:
    """Epoch and loss by step, as they were printed: every bit counts."""
    found = [re.fullmatch(r"step (\d+) epoch (\d+) loss (\S+)\n", line) for line in lines]
    return {int(match[1]): (match[2], match[3]) for match in found if match}


def run_by_torchrun(place: Place, *arguments: str) -> dict[int, tuple[str, str]]:
    """As the example says."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(EXAMPLE), "train", "--url", place.url, *arguments],
        env={**os.environ, **place.environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return losses(done.stdout.splitlines(keepends=True))


def run_to_the_end(place: Place, *arguments: str) -> dict[int, tuple[str, str]]:
    with ranks(place, *arguments) as processes:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
    return losses(outputs[0].splitlines(keepends=True))


def run_and_kill(place: Place, after: int, *arguments: str) -> dict[int, tuple[str, str]]:
    """SIGKILL to both ranks and their workers when step `after` is done; what came after it counts too."""
    with ranks(place, *arguments) as processes:
        out = processes[0].stdout
        assert out is not None
        early = [out.readline() for _ in range(after)]
        kill(processes)
        return losses([*early, *out.readlines()])


@pytest.mark.parametrize(
    ("data", "kills"),
    [("rows", 1), pytest.param("rows", 2, marks=SLOW), pytest.param("images", 2, marks=SLOW)],
)
def test_a_killed_training_run_goes_on_as_if_nothing_had_been(
    place: Place, tmp_path: Path, data: str, kills: int
) -> None:
    """Two ranks over gloo; killed after step 9 or a little later, gone on with from the checkpoint before."""
    require_module("sklearn")
    publish = [sys.executable, EXAMPLE, "publish", "--url", place.url, "--data", data]
    environment = {**os.environ, **place.environment}
    if data == "rows" and kills == 2:
        place = replace(place, directory="again")
        publish[4] = place.url
    subprocess.run(publish, env=environment, check=True, timeout=200)
    arguments = ["--data", data, "--batch-size", "64", "--epochs", "2"]  # 15 steps each
    whole = run_by_torchrun(place, *arguments, "--checkpoint", str(tmp_path / "whole.pt"))
    assert sorted(whole) == list(range(1, 31))
    assert float(whole[30][1]) < float(whole[1][1]) / 2, "it learns"

    arguments += ["--checkpoint", str(tmp_path / "killed.pt")]
    curve = run_and_kill(place, 9, *arguments)
    if kills == 2:
        again = run_and_kill(place, 7, *arguments, "--workers", "2")
        assert min(again) - 1 in checkpoints(curve)
        assert {**curve, **again} == {**again, **curve}
        curve |= again
    rest = run_to_the_end(place, *arguments, "--workers", "0")
    assert min(rest) - 1 in checkpoints(curve)
    assert {**curve, **rest} == {**rest, **curve} == whole


def checkpoints(curve: dict[int, tuple[str, str]]) -> list[int]:
    """The steps after which the last one may have been written; a kill may come before the rename."""
    last = max(curve) // 5 * 5
    return [last, last - 5]
