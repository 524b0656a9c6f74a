"""How old an answer may be for who has changed something since."""

from __future__ import annotations

from kara_cache import own_changes
from kara_cache.own_changes import OwnChanges


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_change_concerns_the_file_and_what_is_above_it() -> None:
    clock = Clock()
    changes = OwnChanges(clock=clock)
    assert changes.age_s("/m/a/b") is None
    changes.note("/m/a/b")
    clock.now += 5
    for path in ("/m/a/b", "/m/a", "/m", "/"):
        assert changes.age_s(path) == 5.0
    assert changes.age_s("/m/a/c") is None
    assert changes.age_s("/m/ab") is None
    changes.note("/m/a/c")
    assert changes.age_s("/m/a") == 0.0
    assert changes.age_s("/m/a/b") == 5.0


def test_what_had_to_be_forgotten_is_taken_for_changed(monkeypatch) -> None:
    monkeypatch.setattr(own_changes, "_MAX_PATHS", 4)
    clock = Clock()
    changes = OwnChanges(clock=clock)
    for number in range(10):
        changes.note(f"/m/{number}")
        clock.now += 1
    assert changes.age_s("/m/9") == 1.0
    assert changes.age_s("/m/0") == changes.age_s("/m/never") == 3.0, "as the latest that was forgotten"
