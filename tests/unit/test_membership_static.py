from __future__ import annotations

import pytest

from kara_cache.errors import ConfigError
from kara_cache.membership.base import MembershipView, MemberState
from kara_cache.membership.static import StaticMembership


def test_workers_are_sorted_and_named_by_address() -> None:
    view = StaticMembership("b:2, a:10 ,[::1]:9000,").view()

    assert [(worker.id, worker.host, worker.port) for worker in view.workers] == [
        ("[::1]:9000", "::1", 9000),
        ("a:10", "a", 10),
        ("b:2", "b", 2),
    ]
    assert {worker.state for worker in view.workers} == {MemberState.ACTIVE}
    assert view.source == "static"


def test_a_view_stays_the_same_object() -> None:
    membership = StaticMembership(["a:1", "b:2"])
    before = membership.view()
    membership.close()

    assert membership.view() is before


def test_nobody_is_a_view_too() -> None:
    assert StaticMembership("").view() == MembershipView((), 0, "static")


@pytest.mark.parametrize(
    "wrong", ["a", "a:", "a:0", "a:x", "a:70000", ":80", "http://a:1", "a:1/x", "u:p@a:1", "a:1?b", "a b:1"]
)
def test_an_item_that_is_no_address_is_named(wrong: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        StaticMembership(["good:1", wrong])


def test_a_worker_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        StaticMembership("a:1,b:1,a:1")
