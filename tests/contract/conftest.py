from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import MARKS, STORES, Site


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "site" in metafunc.fixturenames:
        kinds = [pytest.param(kind, marks=MARKS.get(kind, ()), id=kind) for kind in STORES]
        metafunc.parametrize("site", kinds, indirect=True)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with STORES[request.param](tmp_path) as found:
        yield found
