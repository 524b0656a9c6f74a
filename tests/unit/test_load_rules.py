"""Rules for paths over a real page store: pinned pages survive pressure and a restart, others expire."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.errors import FormatError, MembershipError
from kara_cache.mount import is_below
from kara_cache.page import PageHeader, PageId, file_id
from kara_cache.path_rule import (
    PathRule,
    Priority,
    decode_rule,
    encode_rule,
    is_pinned,
    priority_of,
    ttl_of,
)
from kara_worker.eviction import make_policy
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.pages.page_file import group_token
from kara_worker.rules.path_rules import PathRules
from kara_worker.rules.shelf import LocalRules

PAGE = 64 << 10
ROOM = 8  # pages


@contextmanager
def store(directory: Path, **options: float) -> Iterator[FilePageStore]:
    capacity = ROOM * (PAGE + 4096)
    made = FilePageStore([directory], capacity, PAGE, make_policy("lru", guard=False), **options)
    try:
        yield made
    finally:
        made.close()


def put(pages: FilePageStore, rules: PathRules, path: str, *, age_s: float = 0.0) -> bool:
    """One page of a file, as the page cache does it."""
    identity = file_id(path, "v", PAGE)
    created_ns = time.time_ns() - int(age_s * 1e9)
    header = PageHeader.of(
        PageId(identity, 0), bytes(PAGE), page_bytes=PAGE, created_ns=created_ns, path=path
    )
    rules.note(identity, path)
    return pages.put(header, memoryview(bytes(PAGE)), group=path.split("/")[1])


def here(pages: FilePageStore, path: str) -> bool:
    return pages.contains(PageId(file_id(path, "v", PAGE), 0))


def rules_of(pages: FilePageStore, directory: Path) -> PathRules:
    return PathRules(LocalRules(directory / "RULES.json"), pages)


def set_rule(rules: PathRules, path: str, *, pinned: bool | None = None, ttl_s: float | None = None) -> None:
    said = {"pinned": pinned, "ttl_s": ttl_s}
    rules.change(path, **{key: value for key, value in said.items() if value is not None})


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pinned_path_survives_pressure(tmp_path: Path, when: str) -> None:
    with store(tmp_path / "p") as pages:
        rules = rules_of(pages, tmp_path)
        if when == "before":
            set_rule(rules, "/m/keep", pinned=True)
        for number in range(3):
            assert put(pages, rules, f"/m/keep/{number}")
        if when == "after":
            set_rule(rules, "/m/keep", pinned=True)
        for number in range(50):
            assert put(pages, rules, f"/m/keeper/{number}")
        assert all(here(pages, f"/m/keep/{number}") for number in range(3))
        set_rule(rules, "/m/keep", pinned=False)
        for number in range(50, 100):
            assert put(pages, rules, f"/m/keeper/{number}")
        assert not any(here(pages, f"/m/keep/{number}") for number in range(3))
        rules.close()


WHEN_FULL = {"high_watermark": 1.0, "low_watermark": 1.0}  # nothing is evicted ahead of need


@pytest.mark.parametrize("when", ["before", "after"])
def test_low_priority_leaves_before_others_and_high_after_them(tmp_path: Path, when: str) -> None:
    with store(tmp_path / "p", **WHEN_FULL) as pages:
        rules = rules_of(pages, tmp_path)

        def rank() -> None:
            rules.change("/m/low", priority=Priority.LOW)
            rules.change("/m/low/but", priority=Priority.HIGH)  # the nearest rule counts

        if when == "before":
            rank()
        high, usual, low = (
            [f"{where}/{number}" for number in range(2)] for where in ("/m/low/but", "/m", "/m/low")
        )
        assert all(put(pages, rules, path) for path in (*high, *usual, *low))  # low ones were used last
        if when == "after":
            rank()
        assert all(put(pages, rules, f"/n/{number}") for number in range(4))  # two are for free room
        assert [here(pages, path) for path in (*high, *usual, *low)] == 4 * [True] + 2 * [False]
        assert all(put(pages, rules, f"/n/{number}") for number in range(4, 50))
        assert [here(pages, path) for path in (*high, *usual)] == 2 * [True] + 2 * [False]
        assert not put(pages, rules, "/m/low/late")  # it would cost one that is worth more
        rules.change("/m/low/but", priority=None)
        rules.change("/m/low", priority=None)
        assert rules.read() == ()
        assert put(pages, rules, "/m/low/late")
        assert all(put(pages, rules, f"/n/{number}") for number in range(50, 100))
        assert not any(here(pages, path) for path in high)
        rules.close()


def test_pages_that_a_load_has_brought_have_their_priority_when_it_is_over(tmp_path: Path) -> None:
    with store(tmp_path / "p", **WHEN_FULL) as pages:
        rules = rules_of(pages, tmp_path)
        rules.change("/m/low", priority=Priority.LOW)
        loaded = [f"/m/low/{number}" for number in range(ROOM)]
        for path in loaded:
            pages.shelter(file_id(path, "v", PAGE))
            assert put(pages, rules, path)
        for number in range(2000):  # more files than are remembered without a page
            rules.note(file_id(f"/m/low/none/{number}", "v", PAGE), f"/m/low/none/{number}")
        for path in loaded:
            pages.expose(file_id(path, "v", PAGE))
        usual = [f"/n/{number}" for number in range(ROOM)]
        assert all(put(pages, rules, path) for path in usual)
        assert not any(here(pages, path) for path in loaded)
        assert not put(pages, rules, "/m/low/late")
        assert all(here(pages, path) for path in usual)
        rules.close()


@given(st.dictionaries(st.sampled_from(["/m", "/m/a", "/m/a/b"]), st.sampled_from([None, *Priority])))
def test_the_nearest_rule_says_the_priority(said: dict[str, Priority | None]) -> None:
    rules = [PathRule(path, priority=priority) for path, priority in said.items()]
    wanted = Priority.MEDIUM
    for path in ("/m", "/m/a", "/m/a/b"):
        wanted = said.get(path) or wanted
    assert priority_of(rules, "/m/a/b/c") == wanted
    assert priority_of(rules, "/ma/b") is Priority.MEDIUM
    assert [decode_rule(encode_rule(rule)) for rule in rules] == rules


def test_what_is_pinned_leaves_no_room_for_others(tmp_path: Path) -> None:
    with store(tmp_path / "p") as pages:
        rules = rules_of(pages, tmp_path)
        set_rule(rules, "/m", pinned=True)
        assert sum(put(pages, rules, f"/m/{number}") for number in range(2 * ROOM)) == ROOM
        assert not put(pages, rules, "/other/x")
        assert not pages.has_room(1)
        assert pages.free("/m", recursive=True)[0] == ROOM  # being told to go is another matter
        assert put(pages, rules, "/other/x")
        rules.close()


def test_pins_hold_for_pages_that_an_earlier_process_left(tmp_path: Path) -> None:
    with store(tmp_path / "p") as pages:
        rules = rules_of(pages, tmp_path)
        set_rule(rules, "/m/keep", pinned=True)
        assert put(pages, rules, "/m/keep/x")
        rules.close()
    with store(tmp_path / "p") as pages:
        rules = rules_of(pages, tmp_path)
        rules.start()
        deadline = time.monotonic() + 20
        while pages.has_room(ROOM * PAGE) and time.monotonic() < deadline:  # until the pin is seen
            time.sleep(0.01)
        for number in range(50):
            put(pages, rules, f"/m/{number}")
        assert here(pages, "/m/keep/x")
        rules.close()


def test_pages_below_a_path_expire(tmp_path: Path) -> None:
    with store(tmp_path / "p") as pages:
        rules = rules_of(pages, tmp_path)
        for path, age_s in (("/m/old/a", 7200), ("/m/old/b", 60), ("/m/new/a", 7200), ("/m/old/in/c", 7200)):
            assert put(pages, rules, path, age_s=age_s)
        assert rules.expire(time.time_ns()) == 0
        set_rule(rules, "/m/old", pinned=True, ttl_s=3600)
        assert rules.expire(time.time_ns()) == 2
        assert [here(pages, path) for path in ("/m/old/a", "/m/old/b", "/m/new/a", "/m/old/in/c")] == [
            False,
            True,
            True,
            False,
        ]
        assert pages.stats().evictions["ttl"] == 2
        rules.close()


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
RULES = st.lists(
    st.builds(PathRule, path=PATHS, pinned=st.booleans(), ttl_s=st.none() | st.floats(1, 1e6)), max_size=5
)


@given(RULES, PATHS)
def test_a_path_has_the_rules_of_all_above_it(rules: list[PathRule], path: str) -> None:
    above = [rule for rule in rules if is_below(path, rule.path)]
    assert is_pinned(rules, path) == any(rule.pinned for rule in above)
    times = [rule.ttl_s for rule in above if rule.ttl_s is not None]
    assert ttl_of(rules, path) == (min(times) if times else None)
    assert all(decode_rule(encode_rule(rule)) == rule for rule in rules)


@pytest.mark.parametrize(
    ("path", "ttl_s"), [("/", None), ("/a/", None), ("a", None), ("/a/../b", 1.0), ("/a", 0.0)]
)
def test_a_rule_that_cannot_be_meant(path: str, ttl_s: float | None) -> None:
    with pytest.raises(ValueError):
        PathRule(path, ttl_s=ttl_s)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"path": "/"}', b'{"path": "/a", "ttl_s": -1}'])
def test_what_is_no_rule(data: bytes) -> None:
    with pytest.raises(FormatError, match="path rule"):
        decode_rule(data)


def test_a_damaged_file_of_rules_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "RULES.json"
    file.write_text("[")
    shelf = LocalRules(file)
    with pytest.raises(MembershipError, match=r"RULES\.json"):
        shelf.read()
    with pytest.raises(MembershipError):
        shelf.write(PathRule("/a", pinned=True))
    assert file.read_text() == "["


# -- quotas ------------------------------------------------------------------------------------------


@contextmanager
def store_with_quota(directory: Path, pages: int) -> Iterator[FilePageStore]:
    """/small may have so many pages, of `ROOM`."""
    made = FilePageStore(
        [directory],
        ROOM * (PAGE + 4096),
        PAGE,
        make_policy("lru", guard=False, groups=[group_token("small")]),
        quotas={"small": pages * (PAGE + 4096)},
    )
    try:
        yield made
    finally:
        made.close()


def count(pages: FilePageStore, prefix: str) -> int:
    return sum(stored.pages for stored in pages.files() if stored.path.startswith(prefix))


def test_a_mount_stays_within_its_quota_and_evicts_its_own(tmp_path: Path) -> None:
    with store_with_quota(tmp_path / "p", 3) as pages:
        rules = rules_of(pages, tmp_path)
        assert put(pages, rules, "/other/x")
        for number in range(20):
            assert put(pages, rules, f"/small/{number}")
            assert count(pages, "/small/") <= 3
        assert here(pages, "/other/x")
        assert [number for number in range(20) if here(pages, f"/small/{number}")] == [17, 18, 19]
        for number in range(20):  # others may use what the quota leaves, and more
            assert put(pages, rules, f"/other/{number}")
        assert count(pages, "") >= ROOM - 1  # one may go ahead of need
        rules.close()


def test_a_quota_holds_for_what_is_pinned_and_after_a_restart(tmp_path: Path) -> None:
    with store_with_quota(tmp_path / "p", 3) as pages:
        rules = rules_of(pages, tmp_path)
        set_rule(rules, "/small", pinned=True)
        assert sum(put(pages, rules, f"/small/{number}") for number in range(9)) == 3
        assert not pages.has_room(PAGE, group="small")
        assert pages.has_room(PAGE, group="other")
        rules.close()
    with store_with_quota(tmp_path / "p", 2) as pages:  # a smaller one from now on
        rules = rules_of(pages, tmp_path)
        assert count(pages, "/small/") == 3
        assert put(pages, rules, "/small/new")
        assert count(pages, "/small/") == 2
        rules.close()
