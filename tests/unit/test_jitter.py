from __future__ import annotations

import random

from kara_cache.jitter import jitter


def test_between_its_bounds_and_without_a_number_of_the_programs_own_generator() -> None:
    random.seed(7)
    before = random.getstate()
    drawn = {jitter(0.5, 1.0) for _ in range(100)}
    assert random.getstate() == before
    assert len(drawn) > 50
    assert all(0.5 <= one <= 1.0 for one in drawn)
