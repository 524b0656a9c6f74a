"""The examples of docs/load-jobs.md, run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted import Mounted, mounted

from kara_cache.cli.main import main

TEXT = (Path(__file__).parents[2] / "docs" / "load-jobs.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with mounted(tmp_path_factory.mktemp("load"), peers=True) as found:
        for name in ("train/a.bin", "train/b.bin", "models/m.bin", "scratch/s.bin"):
            (found.directory / name).parent.mkdir(exist_ok=True)
            (found.directory / name).write_bytes(name.encode() * 1000)
        yield found


@pytest.fixture(autouse=True)
def environment(place: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in place.options.items():
        monkeypatch.setenv(f"KARA_{key.upper()}", str(value))


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out == "2 pages, 22000 bytes from the store\n"


COMMANDS = [line.split("#")[0].split()[1:] for line in re.findall(r"^    (kara .*)$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands(arguments: list[str]) -> None:
    assert main(arguments) == 0


def test_every_metric_and_option_is_described(place: Mounted) -> None:
    from kara_cache.load_job import LoadOptions
    from kara_worker.jobs.batch import Reason

    exposed = {name.partition("{")[0] for name in place.cluster.workers[0].metrics()}
    described = set(re.findall(r"`(kara_load_[a-z_]+)`", TEXT))
    labelled = {"kara_load_failed_pages_total"}  # has samples only when there are failures
    assert {name for name in exposed if name.startswith("kara_load_")} | labelled == described
    assert all(f"`{name}" in TEXT for name in LoadOptions.__dataclass_fields__)
    assert all(f"`{reason.value}`" in TEXT for reason in Reason if reason is not Reason.INTERNAL)
