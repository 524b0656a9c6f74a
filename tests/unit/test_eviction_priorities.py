"""Pages leave by priority; among equals the policy inside has its way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kara_cache.page import PageId
from kara_cache.path_rule import Priority
from kara_worker.eviction.lru import LeastRecentlyUsed
from kara_worker.eviction.priorities import Priorities
from kara_worker.eviction.quotas import Quotas

FILES = [bytes([number]) * 16 for number in range(4)]
ORDER = [Priority.LOW, Priority.MEDIUM, Priority.HIGH]
SIZE = 10
file_ids = st.sampled_from(FILES)
pages = st.builds(PageId, file_ids, st.integers(0, 3))


class PrioritiesModel(RuleBasedStateMachine):
    """Against three lists, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Priorities(LeastRecentlyUsed())
        self.levels: dict[Priority, list[PageId]] = {priority: [] for priority in ORDER}
        self.said = dict.fromkeys(FILES, Priority.MEDIUM)

    def here(self, page: PageId) -> list[PageId] | None:
        level = self.levels[self.said[page.file_id]]
        return level if page in level else None

    @rule(page=pages)
    def put(self, page: PageId) -> None:
        if self.here(page) is None:
            self.policy.track(page, SIZE, "g")
            self.levels[self.said[page.file_id]].append(page)

    @rule(page=pages)
    def ask(self, page: PageId) -> None:
        own = ORDER.index(self.said[page.file_id])
        full = [bool(self.levels[priority]) for priority in ORDER]
        wanted = any(full[: own + 1]) or not any(full)
        assert self.policy.admit(page, SIZE, "g") == wanted

    @rule(page=pages)
    def use(self, page: PageId) -> None:
        self.policy.touch(page)
        if (level := self.here(page)) is not None:
            level.remove(page)
            level.append(page)

    @rule(page=pages)
    def drop(self, page: PageId) -> None:
        self.policy.forget(page)
        if (level := self.here(page)) is not None:
            level.remove(page)

    @rule(file_id=file_ids, priority=st.sampled_from(ORDER))
    def prefer(self, file_id: bytes, priority: Priority) -> None:
        old = self.levels[self.said[file_id]]
        moved = [page for page in old if page.file_id == file_id]
        self.policy.prefer(file_id, priority, [(page, SIZE, "g") for page in moved])
        if self.said[file_id] is not priority:
            self.said[file_id] = priority
            self.levels[priority] += moved
            old[:] = [page for page in old if page.file_id != file_id]

    @rule()
    def evict(self) -> None:
        level = next((self.levels[priority] for priority in ORDER if self.levels[priority]), None)
        assert self.policy.evict() == (level.pop(0) if level else None)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.policy) == sum(map(len, self.levels.values()))
        assert {file_id: self.policy.priority_of(file_id) for file_id in FILES} == self.said


TestPriorities = PrioritiesModel.TestCase


@given(st.lists(pages, unique=True, max_size=10))
def test_where_nobody_said_anything_it_is_the_policy_inside(order: list[PageId]) -> None:
    plain, wrapped = LeastRecentlyUsed(), Priorities(LeastRecentlyUsed())
    for page in order:
        plain.track(page, SIZE, "g")
        wrapped.track(page, SIZE, "g")
    assert [plain.evict() for _ in order] == [wrapped.evict() for _ in order]


def test_files_that_never_get_a_page_do_not_pile_up() -> None:
    policy = Priorities(LeastRecentlyUsed())
    identities = [number.to_bytes(16, "big") for number in range(5000)]
    for identity in identities:
        policy.prefer(identity, Priority.LOW, ())
    low = sum(policy.priority_of(identity) is Priority.LOW for identity in identities)
    assert 0 < low < 2000


def test_a_group_at_its_quota_gives_up_its_own_lowest_page() -> None:
    def make() -> Quotas:
        return Quotas(["a"], LeastRecentlyUsed)

    policy = Priorities(make(), make)
    high, low, other = (PageId(file_id, 0) for file_id in FILES[:3])
    policy.prefer(FILES[0], Priority.HIGH, ())
    policy.prefer(FILES[1], Priority.LOW, ())
    policy.prefer(FILES[2], Priority.LOW, ())
    for page, group in ((high, "a"), (low, "a"), (other, "b")):
        policy.track(page, SIZE, group)
    assert [policy.evict_from("a") for _ in range(3)] == [low, high, None]
