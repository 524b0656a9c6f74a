"""Sheltered pages never leave; the rest is as the policy inside would have it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kara_cache.page import PageId
from kara_worker.eviction.lru import LeastRecentlyUsed
from kara_worker.eviction.sheltered import Sheltered

FILES = [bytes([number]) * 16 for number in range(4)]
file_ids = st.sampled_from(FILES)
pages = st.builds(PageId, file_ids, st.integers(0, 4))


class ShelteredModel(RuleBasedStateMachine):
    """Against two dictionaries: which pages are there, and how often each file is held."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Sheltered(LeastRecentlyUsed())
        self.here: dict[PageId, int] = {}
        self.holds = dict.fromkeys(FILES, 0)

    @rule(page=pages)
    def put(self, page: PageId) -> None:
        if self.holds[page.file_id]:
            assert self.policy.admit(page, 10, "g")
        if page not in self.here:
            self.policy.track(page, 10, "g")
            self.here[page] = 10

    @rule(page=pages)
    def use(self, page: PageId) -> None:
        self.policy.touch(page)

    @rule(page=pages)
    def drop(self, page: PageId) -> None:
        self.policy.forget(page)
        self.here.pop(page, None)

    @rule(file_id=file_ids)
    def shelter(self, file_id: bytes) -> None:
        known = [(page, size, "g") for page, size in self.here.items() if page.file_id == file_id]
        self.policy.shelter(file_id, known)
        self.holds[file_id] += 1

    @rule(file_id=file_ids)
    def expose(self, file_id: bytes) -> None:
        self.policy.expose(file_id)
        self.holds[file_id] = max(0, self.holds[file_id] - 1)

    @rule()
    def evict(self) -> None:
        page = self.policy.evict()
        loose = {page for page in self.here if not self.holds[page.file_id]}
        if page is None:
            assert not loose
        else:
            assert page in loose
            del self.here[page]

    @invariant()
    def counts_agree(self) -> None:
        held = sum(1 for page in self.here if self.holds[page.file_id])
        assert self.policy.sheltered == held
        assert len(self.policy) == len(self.here)
        assert self.policy.bytes == 10 * held


TestSheltered = ShelteredModel.TestCase


def test_who_is_let_go_of_is_evicted_again() -> None:
    policy = Sheltered(LeastRecentlyUsed())
    page = PageId(FILES[0], 0)
    policy.shelter(FILES[0], [])
    policy.track(page, 10, "g")
    assert policy.evict() is None
    policy.expose(FILES[0])
    assert policy.evict() == page


@given(st.lists(pages, unique=True, max_size=10))
def test_without_shelter_it_is_the_policy_inside(order: list[PageId]) -> None:
    plain, wrapped = LeastRecentlyUsed(), Sheltered(LeastRecentlyUsed())
    for policy in (plain, wrapped):
        for page in order:
            policy.track(page, 10, "g")
        for page in order[::2]:
            policy.touch(page)
    assert [plain.evict() for _ in order] == [wrapped.evict() for _ in order]
