from __future__ import annotations

from pathlib import Path

import pytest
from mounted import Mounted
from services import require_module

pytestmark = pytest.mark.clients
duckdb = require_module("duckdb")


def test_sql_on_files(kara: Mounted, place: tuple[str, Path]) -> None:
    url, directory = place
    with duckdb.connect() as connection:
        connection.register_filesystem(kara.filesystem())
        for part in range(3):
            rows = f"select i, i % 7 as week from range({part * 1000}, {part * 1000 + 1000}) t(i)"
            connection.execute(f"copy ({rows}) to '{url}/part-{part}.parquet' (format parquet)")
        total = connection.execute(f"select sum(i) from '{url}/*.parquet' where week = 3").fetchone()
        assert total == (sum(i for i in range(3000) if i % 7 == 3),)
        connection.execute(f"copy (select 1 as x) to '{url}/x.csv'")
        assert connection.execute(f"select x from '{url}/x.csv'").fetchall() == [(1,)]
    assert (directory / "x.csv").read_text() == "x\n1\n"
