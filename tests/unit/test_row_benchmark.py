"""The row benchmark: the generator gives the same rows everywhere, and the report says what was measured."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import xml.dom.minidom
from array import array
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_generator_makes_the_same_rows_in_every_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.rows.generate", tmp_path, "--rows", "2000"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60, capture_output=True)
    data, ends = (
        (tmp_path / "rows-2000.bin").read_bytes(),
        array("Q", (tmp_path / "ends-2000.bin").read_bytes()),
    )
    assert hashlib.blake2b(data, digest_size=8).hexdigest() == "fff4b78189e7ed9a"
    assert len(ends) == 2000
    assert ends[-1] == len(data)
    assert 2700 < len(data) / len(ends) < 3300
    starts = [0, *ends]
    rows = [json.loads(data[start:stop]) for start, stop in zip(starts, ends, strict=False)]
    assert [row["id"] for row in rows] == [f"doc-{number:09d}" for number in range(2000)]


def test_formats_of_our_own_environment_are_measured_and_reported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.rows", "--rows", "2000", "--rounds", "1", "--no-cluster"]
    command += ["--only", "kara_cache", "--only", "mmap", "--out", str(out), "--home", str(tmp_path)]
    for column in ("append", "sequential", "random", "permutation", "permutation_json"):
        command += ["--column", column]
    done = subprocess.run(command, cwd=ROOT, timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "rows.json").read_text())
    assert document["rows"] == 2000
    assert document["failed"] == {}
    assert document["controls"] == {
        "kara_cache gives the bytes that were generated": True,
        "mmap (limit) gives the bytes that were generated": True,
    }
    for rates in document["rows_per_second"].values():
        assert set(rates) == {"append", "sequential", "random", "permutation", "permutation_json"}
        assert all(rate > 0 for rounds in rates.values() for rate in rounds)
    text = (out / "rows.md").read_text()
    assert "| permutation | mmap (limit) | ≥ 0.7x |" in text
    xml.dom.minidom.parse(str(out / "rows.svg"))
    assert list(tmp_path.glob("kara-rows-*")) == []


def test_a_format_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.rows.format_process import FormatProcess, MeasureError
    finally:
        sys.path.remove(str(ROOT))
    process = FormatProcess(Path(sys.executable), "as_mmap", str(tmp_path / "nothing"), tmp_path / "log")
    try:
        with pytest.raises(MeasureError, match="FileNotFoundError"):
            process.ask("sequential", 30, decode=False)
        with pytest.raises(MeasureError, match="AttributeError"):
            process.ask("no such column", 30)
    finally:
        process.close()
    with pytest.raises(MeasureError, match="ModuleNotFoundError"):
        FormatProcess(Path(sys.executable), "no_format", str(tmp_path), tmp_path / "log")
