"""Randomness for waits, apart from the `random` of the program we run in.

A training script that seeds `random` gets the same numbers whatever threads of ours wait meanwhile.
"""

from __future__ import annotations

import random

_SOURCE = random.SystemRandom()  # has no state, so a forked child does not wait in step with its parent


def jitter(low: float, high: float) -> float:
    """Anything from `low` to `high`, evenly."""
    return _SOURCE.uniform(low, high)
