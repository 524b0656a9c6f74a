from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator

import leaks
import pytest
import services
from hypothesis import settings
from hypothesis.internal.conjecture import providers

GRACE_S = float(os.environ.get("PYTEST_LEAK_GRACE_S", "10"))

# The same examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("kara", derandomize=True, deadline=None, database=None)
settings.load_profile("kara")
# Nor on which modules other tests have imported: Hypothesis collects constants from their sources, and asking
# a lazy module for its file can raise in the middle of a draw.
if hasattr(providers, "_get_local_constants"):
    providers._get_local_constants = providers.Constants


def pytest_configure(config: pytest.Config) -> None:
    os.environ[leaks.RUN_MARK] = secrets.token_hex(8)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a background job; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test after which a non-daemon thread or a process lives on.

    What fixtures of a wider scope started before the test is theirs. Where such a fixture starts
    more in the middle of a test (a pool that grows), mark it: `@pytest.mark.leaves_running("why")`.
    """
    before = leaks.running()
    yield
    if request.node.get_closest_marker("leaves_running"):
        return
    if left := leaks.left_since(before, grace_s=GRACE_S):
        pytest.fail(f"left running after {GRACE_S:g} s: " + "; ".join(left), pytrace=False)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Call it for each port you need."""
    return services.free_port
