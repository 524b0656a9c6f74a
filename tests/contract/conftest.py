from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_servers
import stores
import stores_oss
import stores_s3
from stores import SECRET, Site

STORES = stores.STORES | stores_oss.STORES | stores_s3.STORES
MARKS = stores.MARKS | stores_oss.MARKS | stores_s3.MARKS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "site" in metafunc.fixturenames:
        chosen = [kind for kind in STORES if stores.concerns(kind, metafunc.fixturenames)]
        kinds = [pytest.param(kind, marks=MARKS.get(kind, ()), id=kind) for kind in chosen]
        metafunc.parametrize("site", kinds, indirect=True)


def parameters_of(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)  # only there with parameters
    return callspec.params if callspec is not None else {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given = parameters_of(item)
        reason = stores_s3.WRONG_IN_THE_SERVER.get((given.get("site"), given.get("name")))
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with STORES[request.param](tmp_path) as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def s3_servers_running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Up before the first test, as far as a selected test is parametrized with them."""
    parameters = {str(value) for item in request.session.items for value in parameters_of(item).values()}
    kinds = [server for kind, server in stores_s3.SERVERS.items() if kind in parameters]
    with s3_servers.running(kinds, tmp_path_factory.mktemp("s3"), SECRET):
        yield
