"""Who renews a lease, seen from outside: a story is a list of (time, what etcd says is left)."""

from __future__ import annotations

import pytest

from kara_worker.lease import LeaseWitness


def renewed(ttl_s: float, every_s: float, until_s: float, look_s: float) -> list[tuple[float, int]]:
    """A living holder, looked at every `look_s`; etcd rounds down."""
    looks = [look_s * number for number in range(int(until_s / look_s))]
    return [(now, int(ttl_s - now % every_s)) for now in looks]


def abandoned(left_s: float, look_s: float) -> list[tuple[float, int]]:
    """A dead holder. etcd may take a while to end a lease whose time is over."""
    looks = [look_s * number for number in range(int((left_s + 3) / look_s))]
    return [(now, max(0, int(left_s - now))) for now in looks]


def extended(story: list[tuple[float, int]], at_s: float, ttl_s: float) -> list[tuple[float, int]]:
    """A new leader of etcd gives the lease its full time once more."""
    return [(now, left) for now, left in story if now < at_s] + [
        (now + at_s, left) for now, left in abandoned(ttl_s, 0.5)
    ]


ALIVE = {
    "beats every 5 s": renewed(15, 5, 12, 1),
    "beats every 5 s, looked at often": renewed(15, 5, 12, 0.1),
    "short lease, never under 1 s": renewed(2, 0.6, 6, 0.2),
    "a beat lost": renewed(15, 10, 25, 1),
}
NOT_PROVEN = {
    "dead": abandoned(15, 1),
    "dead, looked at often": abandoned(14.9, 0.05),
    "dead and short": abandoned(1.9, 0.1),
    "dead, and etcd changed its leader": extended(abandoned(15, 0.5), 9, 15),
    "one look": [(0.0, 15)],
}


@pytest.mark.parametrize("name", ALIVE)
def test_a_holder_that_renews_is_seen(name: str) -> None:
    witness = LeaseWitness(7)
    for now, left in ALIVE[name]:
        witness.observe(left, now)
    assert witness.alive


@pytest.mark.parametrize("name", NOT_PROVEN)
def test_a_dead_holder_is_never_called_alive(name: str) -> None:
    witness = LeaseWitness(7)
    for now, left in NOT_PROVEN[name]:
        witness.observe(left, now)
        assert not witness.alive
